"""vLLM's worker side of a weight update: read raw tensors from files, verify, load, answer.

Runs inside vLLM's own processes. ``register`` is the ``vllm.general_plugins`` entry point, the
one hook that vLLM offers there before a model is built; ``FileWeightTransferEngine`` is what
``vllm.distributed.weight_transfer`` calls; ``WorkerExtension`` adds the call that echoes what was
loaded. Knows nothing of requests, of pausing, or of where the file came from.

vLLM repacks weights for its kernels (on CPUs every linear layer), so a tensor cannot be copied in
place: its layerwise reload takes a layer back to the checkpoint's shape, loads it and repacks it.
Layers that no tensor names keep what they had.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from safeladder.records import TensorSpec, WeightManifest
from safeladder.tensors import RawBytes, num_bytes, verify

BACKEND = "safeladder_file"
RECEIVERS = {"nccl": "NcclReceiver", "ipc": "IpcReceiver", "loopback": "LoopbackReceiver"}
"""Transport from GPU to GPU → class in ``vllm_receivers``."""
PARENT_POLL_S = 1.0


def backend_of(transport: str) -> str:
    """vLLM's name of the engine that receives a transport."""
    return f"safeladder_{transport}" if transport in RECEIVERS else BACKEND


def register() -> None:
    """Make the backend known in this process, and tie a child process to its parent's life."""
    with contextlib.suppress(ValueError):  # vLLM may load plug-ins twice; the name is then taken
        WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)
        for transport, class_name in RECEIVERS.items():
            WeightTransferEngineFactory.register_engine(
                backend_of(transport), "actors.vllm_receivers", class_name
            )
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        threading.Thread(target=_die_with, args=(parent.pid,), daemon=True).start()


def _die_with(parent_pid: int) -> None:
    """End this process when its parent is gone. ``PR_SET_PDEATHSIG`` would follow the parent's
    starting *thread*, which may end long before the parent does."""
    while os.getppid() == parent_pid:
        time.sleep(PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class NoInit(WeightTransferInitInfo):  # type: ignore[misc]
    """A file needs no rendezvous."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A chunk of a version: where its bytes lie and what they must be. Lists run over the tensors
    of the chunk, but for ``version_names``."""

    path: str
    version: int
    fence: int
    version_names: list[str]
    """All tensors of the version, those of other chunks too."""
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    checksums: list[str]
    offsets: list[int]
    """First byte of each tensor in the file."""

    @property
    def manifest(self) -> WeightManifest:
        """The chunk's part of the version's manifest."""
        rows = zip(self.names, self.dtypes, self.shapes, self.checksums, strict=True)
        specs = tuple(
            TensorSpec(name=name, dtype=dtype, shape=tuple(shape), checksum=checksum)
            for name, dtype, shape, checksum in rows
        )
        return WeightManifest(version=self.version, fence=self.fence, tensors=specs)


class FileWeightTransferEngine(WeightTransferEngine[NoInit, FileUpdate]):  # type: ignore[misc]
    """Loads any subset of the model's tensors from files of raw bytes, one file for each chunk.

    The model is taken apart only when the first chunk has been verified, so an update that is
    refused by then leaves the served weights untouched. vLLM keeps a chunk's mapping until the
    layers that it touches are complete.
    """

    init_info_cls = NoInit
    update_info_cls = FileUpdate

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # It warns of every layer that an update leaves out, which is the rule here.
        logging.getLogger(initialize_layerwise_reload.__module__).setLevel(logging.ERROR)
        self.receipt: tuple[int, str] = (0, "")
        """Version and digest of the last update that was loaded whole."""
        self.is_intact = True
        """False within an update and after one that failed: the weights are then a mixture."""
        self._specs: list[TensorSpec] = []
        self._loaded: set[str] = set()

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Nothing is touched yet: see the class."""
        self._specs, self._loaded = [], set()

    def finish_weight_update(self) -> None:
        """Put the model together again and note what it is now."""
        if not self._specs:
            return
        with torch.no_grad():
            finalize_layerwise_reload(self.model, self.model_config)
            repack_tied(self.model, self._loaded)
        manifest = WeightManifest(
            version=self._version, fence=self._fence, tensors=tuple(self._specs)
        )
        self.receipt = (manifest.version, manifest.digest)
        self.is_intact = True

    def receipt_for(self, version: int) -> tuple[int, str, bool]:
        """See ``WorkerExtension``."""
        return (*self.receipt, self.is_intact)

    def shutdown(self) -> None:
        """Nothing to release."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one chunk and wait for the device. Raises ``ChecksumError`` or ``ValueError``;
        ``is_intact`` tells whether anything was changed by then."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Verify a chunk's bytes, then load them."""
        manifest = update_info.manifest
        # Private mapping: torch wants writable memory, and nobody writes.
        content = np.memmap(update_info.path, dtype=np.uint8, mode="c")
        tensors = {
            spec.name: content[offset : offset + num_bytes(spec)]
            for spec, offset in zip(manifest.tensors, update_info.offsets, strict=True)
        }
        verify(manifest, tensors)
        if not self._specs:
            packed = getattr(self.model, "packed_modules_mapping", {})
            refuse_partial_fusions(update_info.version_names, packed)
            self._version, self._fence = manifest.version, manifest.fence
            self.is_intact = False
            initialize_layerwise_reload(self.model)
        self._specs += manifest.tensors
        with torch.no_grad():
            self._loaded |= self.model.load_weights(_views(manifest.tensors, tensors))


class WorkerExtension:
    """Mixed into vLLM's worker class; its methods can be called by ``collective_rpc``."""

    weight_transfer_engine: Any

    def weight_receipt(self, version: int) -> tuple[int, str, bool]:
        """Version and digest (computed here, from the bytes that came) of the last whole update,
        and whether the weights are intact. ``version`` is the one that was sent, for transports
        that carry bytes only."""
        receipt: tuple[int, str, bool] = self.weight_transfer_engine.receipt_for(version)
        return receipt


def refuse_partial_fusions(names: Sequence[str], packed: dict[str, list[str]]) -> None:
    """vLLM fuses modules (``q_proj, k_proj, v_proj`` into ``qkv_proj``) and a reload builds the
    fused tensor anew, so an update must name all of its parts or none.

    Raises ``ValueError`` with the first missing name.
    """
    given = set(names)
    for parts in packed.values():
        for name in names:
            module, _, parameter = name.rpartition(".")
            parent, _, own = module.rpartition(".")
            if own not in parts:
                continue
            for part in parts:
                sibling = f"{parent}.{part}.{parameter}"
                if sibling not in given:
                    raise ValueError(f"the update has {name} but not {sibling}, fused with it")


def repack_tied(model: torch.nn.Module, loaded: set[str]) -> None:
    """Repack modules that share a loaded parameter under another name. The reload knows modules,
    not ties: a tied output layer would keep the kernel that was packed from the old embedding."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        if loaded.isdisjoint(names):
            continue
        for name in set(names) - loaded:
            module = model.get_submodule(name.rpartition(".")[0])
            module.quant_method.process_weights_after_loading(module)  # type: ignore[operator,union-attr]


def _views(
    specs: Sequence[TensorSpec], tensors: dict[str, RawBytes]
) -> Iterator[tuple[str, torch.Tensor]]:
    for spec in specs:
        flat = torch.from_numpy(tensors[spec.name]).view(getattr(torch, spec.dtype))
        yield spec.name, flat.reshape(spec.shape)
