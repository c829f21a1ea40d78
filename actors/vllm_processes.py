"""What vLLM's child processes need from their parent: an environment, and weights in memory.

Owns the variables that vLLM reads, the visibility of our plug-in, and the memory files through
which raw tensors reach the workers. Knows no engine and no request.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from safeladder.ports import RawTensors
from safeladder.records import TensorSpec, WeightManifest

PLUGIN_GROUP = "vllm.general_plugins"
PLUGIN_NAME = "safeladder_weights"
PLUGIN_TARGET = "actors.vllm_weights:register"

ALIGNMENT_BYTES = 64


@contextlib.contextmanager
def child_environment(*, enforce_eager: bool) -> Iterator[None]:
    """Environment in which vLLM starts its children; the old one is back on leaving.

    ``enforce_eager`` also keeps vLLM's sampler from compiling its two small functions, which
    takes a compiler and half a minute, and gains nothing that was measurable on a CPU.

    vLLM finds plug-ins only through installed metadata. A tree that was shipped, not installed,
    has none, so a folder with just that metadata is put on the children's path.
    """
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="safeladder-plugin-") as folder:
        added = [str(root)]
        if not _plugin_is_visible():
            write_plugin_metadata(Path(folder))
            added.insert(0, folder)
        inherited = filter(None, [os.environ.get("PYTHONPATH")])
        changes = {
            "PYTHONPATH": os.pathsep.join([*added, *inherited]),
            # A forked child would inherit locks and threads of this process.
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            # Cores are pinned by placement, not by vLLM.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Read on CPUs as "run the worker inside the engine core" (one process less, which
            # otherwise spins); AsyncLLM has its core in a process of its own all the same.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCH_COMPILE_DISABLE": "1" if enforce_eager else "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        }
        before = {name: os.environ.get(name) for name in changes}
        path_before = sys.path.copy()
        os.environ.update(changes)
        sys.path[:0] = added  # a spawned child takes this list, whatever PYTHONPATH says
        try:
            yield
        finally:
            sys.path[:] = path_before
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def write_plugin_metadata(folder: Path) -> None:
    """Metadata of a distribution that consists of our one entry point."""
    info = folder / "safeladder_plugin-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: safeladder-plugin\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[{PLUGIN_GROUP}]\n{PLUGIN_NAME} = {PLUGIN_TARGET}\n")


def _plugin_is_visible() -> bool:
    return any(
        point.name == PLUGIN_NAME for point in importlib.metadata.entry_points(group=PLUGIN_GROUP)
    )


class WeightFile:
    """A chunk of a version in an anonymous memory file that children open through ``/proc``.

    It has no name in any file system, so it is gone when this process is, however it ends.
    """

    def __init__(self, specs: Sequence[TensorSpec], tensors: RawTensors) -> None:
        self._specs = specs
        self._descriptor = os.memfd_create("safeladder-weights")
        self._offsets: list[int] = []
        try:
            end = 0
            for spec in specs:
                end = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                self._offsets.append(end)
                end = self._write(np.ascontiguousarray(tensors[spec.name]).data, end)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    @property
    def path(self) -> str:
        """Where a child process opens the file while it exists."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def update_info(self, manifest: WeightManifest) -> dict[str, Any]:
        """Fields of ``vllm_weights.FileUpdate`` for this file, a part of the manifest's version."""
        return {
            "path": self.path,
            "version": manifest.version,
            "fence": manifest.fence,
            "version_names": [spec.name for spec in manifest.tensors],
            "names": [spec.name for spec in self._specs],
            "dtypes": [spec.dtype for spec in self._specs],
            "shapes": [list(spec.shape) for spec in self._specs],
            "checksums": [spec.checksum for spec in self._specs],
            "offsets": self._offsets,
        }

    def _write(self, raw: memoryview, offset: int) -> int:
        """Write all bytes (one call writes at most 2 GiB) and return the end."""
        while raw:
            written = os.pwrite(self._descriptor, raw, offset)
            offset += written
            raw = raw[written:]
        return offset
