"""vLLM's worker side of transfers from GPU to GPU: vLLM's own engines, which besides keep the
checksum of every tensor as it arrived.

The checksums are those of the manifest (xxh3-128), so each tensor goes through the worker's main
memory once. They are compared by the actor when the transfer is over, since only then is it known
what should have come: a difference costs the engine.

``LoopbackReceiver`` and ``LoopbackSender`` are the same pair over the control plane: the bytes
travel in the calls. They need no GPU, and show that everything but the wire itself works.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from actors.vllm_weights import repack_tied
from safeladder.records import TensorSpec, WeightManifest
from safeladder.tensors import checksum

if TYPE_CHECKING:
    from collections.abc import Iterable

    Weights = Iterable[tuple[str, torch.Tensor]]


class Checked:
    """Mixed in before one of vLLM's engines: notes what arrives, and whether all of it did."""

    model: torch.nn.Module

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._arrived: list[TensorSpec] = []
        self._is_intact = True

    def start_weight_update(self) -> None:
        """vLLM takes the model apart."""
        self._arrived, self._is_intact = [], False
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        """As vLLM does it, with each tensor noted on its way into the model."""
        load: Any = self.model.load_weights

        def noted(weights: Weights) -> Any:
            arrived = list(weights)
            self._arrived += [spec_of(name, tensor) for name, tensor in arrived]
            return load(arrived)

        self.model.load_weights = noted  # type: ignore[assignment]  # over the method, for this call
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            del self.model.load_weights

    def finish_weight_update(self) -> None:
        """vLLM puts the model together."""
        super().finish_weight_update()  # type: ignore[misc]
        self._is_intact = True

    def receipt_for(self, version: int) -> tuple[int, str, bool]:
        """See ``vllm_weights.WorkerExtension``."""
        manifest = WeightManifest(version=version, fence=0, tensors=tuple(self._arrived))
        return version, manifest.digest, self._is_intact


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    """A tensor's entry in a manifest, from its bytes."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(tensor.shape), checksum=checksum(raw))


class NcclReceiver(Checked, NCCLWeightTransferEngine):  # type: ignore[misc]
    """Receives from ``vllm_sender`` by NCCL broadcasts."""


class IpcReceiver(Checked, IPCWeightTransferEngine):  # type: ignore[misc]
    """Maps what ``vllm_sender`` has on the same GPU."""


@dataclass
class LoopbackInit(WeightTransferInitInfo):  # type: ignore[misc]
    """No rendezvous."""


@dataclass
class LoopbackUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One tensor, its bytes with it."""

    name: str
    dtype: str
    shape: list[int]
    raw: bytes


class _Loopback(WeightTransferEngine[LoopbackInit, LoopbackUpdate]):  # type: ignore[misc]
    init_info_cls = LoopbackInit
    update_info_cls = LoopbackUpdate

    def init_transfer_engine(self, init_info: LoopbackInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """As vLLM's engines."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As vLLM's engines, without a device to wait for."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: LoopbackUpdate) -> None:
        """Load the one tensor."""
        flat = torch.frombuffer(bytearray(update_info.raw), dtype=getattr(torch, update_info.dtype))
        with torch.no_grad():
            self.model.load_weights([(update_info.name, flat.reshape(update_info.shape))])

    def finish_weight_update(self) -> None:
        """As vLLM's engines; on a CPU a tied output layer has a kernel of its own."""
        with torch.no_grad():
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing to release."""


class LoopbackReceiver(Checked, _Loopback):
    """Receives from ``LoopbackSender``."""

    def finish_weight_update(self) -> None:
        """Also repacks what is tied to a parameter that came."""
        super().finish_weight_update()
        with torch.no_grad():
            repack_tied(self.model, {spec.name for spec in self._arrived})


@dataclass
class LoopbackTrainerInit(TrainerInitInfo):  # type: ignore[misc]
    """Selects ``LoopbackSender``."""

    backend: ClassVar[str] = "safeladder_loopback"


class LoopbackSender(TrainerWeightTransferEngine[LoopbackTrainerInit]):  # type: ignore[misc]
    """The trainer's end: each tensor is one call of the control plane."""

    init_info_cls = LoopbackTrainerInit

    @classmethod
    def trainer_init(
        cls,
        init_info: LoopbackTrainerInit,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        """Open the workers' end."""
        client.init_weight_transfer_engine(asdict(LoopbackInit()))
        return cls(client=client, source=source)

    def send_weights(self) -> None:
        """One version."""
        self.client.start_weight_update()
        for name, tensor in self.source:
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            dtype = str(tensor.dtype).removeprefix("torch.")
            update = LoopbackUpdate(name=name, dtype=dtype, shape=list(tensor.shape), raw=raw)
            self.client.update_weights(asdict(update))
        self.client.finish_weight_update()


def register_loopback_sender() -> None:
    """Make ``LoopbackSender`` known in this process."""
    with contextlib.suppress(ValueError):  # it is known already
        WeightTransferTrainerFactory.register_engine("safeladder_loopback", LoopbackSender)
