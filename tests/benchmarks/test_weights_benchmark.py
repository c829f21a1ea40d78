from pathlib import Path

import numpy as np

from benchmarks.weight_reader import shared_file


def test_private_memory_is_told_from_a_shared_file(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(8192))
    shared = np.memmap(path, dtype=np.uint8, mode="r+")
    assert shared_file(shared[100:])[1] == path.stat().st_ino
    assert shared_file(np.zeros(1_000_000, np.uint8))[1] == 0
