"""The streaming writer makes what the safetensors library reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from learners.safetensors_stream import SafetensorsStream, Slot


def raw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def test_the_library_reads_back_names_shapes_values_and_metadata(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.empty((0,), np.int64),
        "scalar": np.array(3, np.int32),
    }
    path = tmp_path / "x.safetensors"
    slots = {name: Slot(str(a.dtype), a.shape) for name, a in arrays.items()}
    with SafetensorsStream(path, slots, {"note": "héllo"}) as file:
        for name, array in arrays.items():
            file.write(name, raw(array))
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, framework="numpy") as found:
        assert found.metadata() == {"format": "pt", "note": "héllo"}
        for name, array in arrays.items():
            assert np.array_equal(found.get_tensor(name), array)


def test_a_tensor_out_of_turn_or_missing_is_refused(tmp_path: Path) -> None:
    slots = {"a": Slot("float32", (1,)), "b": Slot("float32", (1,))}
    value = raw(np.zeros(1, np.float32))
    with (
        pytest.raises(AssertionError, match="before its turn"),
        SafetensorsStream(tmp_path / "x", slots) as file,
    ):
        file.write("b", value)
    with (
        pytest.raises(AssertionError, match="1 tensors were not written"),
        SafetensorsStream(tmp_path / "x", slots) as file,
    ):
        file.write("a", value)
