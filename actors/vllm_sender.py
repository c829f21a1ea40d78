"""The learner's end of a transfer from GPU to GPU, on vLLM's trainer engines.

What is sent is a *published* version, mapped from the object store, not the weights that are being
trained: a transfer takes its own thread and its own time, training goes on, and an engine that
comes late gets the version it asked for. Each engine has an endpoint of its own, with one
communicator for this process and that engine's workers: no engine waits for another, and one that
dies takes nobody with it.

::

    send ─ read, verify ─▶ vLLM's trainer engine ─ control calls ─▶ transfer_step of the role
                                    └── bytes, NCCL or CUDA IPC ──▶ its engine's workers

Only the rank that publishes sends. Knows no optimizer and no request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from actors.weight_intake import WeightIntake
from safeladder.ports import Peer, RawTensors
from safeladder.records import TensorSpec, WeightManifest

if TYPE_CHECKING:
    from safeladder.ports import PayloadStore
    from safeladder.weight_payload import WeightPayload

Describe = Callable[[int], TrainerInitInfo]
"""Workers of an engine → what vLLM needs to open an endpoint to them."""


class StoredVersion(WeightSource):  # type: ignore[misc]
    """A published version as vLLM's trainer engines read it, one tensor on the device at a time."""

    def __init__(self, manifest: WeightManifest, tensors: RawTensors, device: str) -> None:
        self._manifest, self._tensors, self._device = manifest, tensors, device

    def metadata(self) -> list[ParamMeta]:
        """Name, type and shape of every tensor."""
        return [
            ParamMeta(spec.name, getattr(torch, spec.dtype), spec.shape)
            for spec in self._manifest.tensors
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for spec in self._manifest.tensors:
            yield spec.name, self._on_device(spec)

    def _on_device(self, spec: TensorSpec) -> torch.Tensor:
        # A copy first where there is no device, because torch wants writable memory.
        raw = self._tensors[spec.name]
        flat = torch.from_numpy(raw if raw.flags.writeable else raw.copy())
        return flat.view(getattr(torch, spec.dtype)).reshape(spec.shape).to(self._device)


class ControlPlane:
    """``VLLMWeightSyncClient``: vLLM's four calls, each a call of the engine's role. They come from
    the transfer's thread and are made on the event loop."""

    def __init__(self, peer: Peer, loop: asyncio.AbstractEventLoop, deadline_s: float) -> None:
        self._peer, self._loop, self._deadline_s = peer, loop, deadline_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The workers open their end."""
        self._call("init", init_info)

    def start_weight_update(self) -> None:
        """The workers take the model apart."""
        self._call("start", {})

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """The workers receive what is described."""
        assert isinstance(update_info, dict), "one description serves all workers"
        self._call("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The workers put the model together."""
        self._call("finish", {})

    def _call(self, step: str, info: Mapping[str, Any]) -> None:
        call = self._peer.call("transfer_step", {"step": step, "info": dict(info)})
        asyncio.run_coroutine_threadsafe(call, self._loop).result(self._deadline_s)


class VllmSender:
    """``ports.WeightSender`` on vLLM's trainer engines."""

    def __init__(
        self, store: PayloadStore, describe: Describe, deadline_s: float, device: str = "cuda"
    ) -> None:
        self._intake = WeightIntake(store)
        self._describe = describe
        self._deadline_s = deadline_s
        self._device = device
        self._endpoints: dict[str, TrainerWeightTransferEngine] = {}

    async def send(
        self,
        manifest: WeightManifest,
        payload: WeightPayload,
        engine: str,
        num_workers: int,
        control: Peer,
    ) -> None:
        """See ``ports.WeightSender.send``. Raises ``TimeoutError`` past the deadline; the endpoint
        is then given up, which also ends what its thread waits for."""
        tensors = await self._intake.take(manifest, payload)
        source = StoredVersion(manifest, tensors, self._device)
        client = ControlPlane(control, asyncio.get_running_loop(), self._deadline_s)
        try:
            async with asyncio.timeout(self._deadline_s):
                await asyncio.to_thread(self._send, engine, num_workers, client, source)
        except BaseException:
            self._give_up(engine)
            raise

    def _send(
        self, engine: str, num_workers: int, client: ControlPlane, source: StoredVersion
    ) -> None:
        endpoint = self._endpoints.get(engine)
        if endpoint is None:
            endpoint = WeightTransferTrainerFactory.trainer_init(
                self._describe(num_workers), client=client, source=source
            )
            self._endpoints[engine] = endpoint
        endpoint.client, endpoint.source = client, source
        endpoint.send_weights()

    def _give_up(self, engine: str) -> None:
        """Abort what is under way; the engine's next transfer, if any, meets anew."""
        endpoint = self._endpoints.pop(engine, None)
        if endpoint is None:
            return
        group = getattr(endpoint, "model_update_group", None)
        if group is not None:
            group.destroy()
        endpoint.shutdown()


def describe_nccl(address: str) -> Describe:
    """Endpoints at ``address`` (of this machine, as engines reach it): this process is rank 0, the
    engine's workers follow."""

    def describe(num_workers: int) -> TrainerInitInfo:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(
            master_address=address,
            master_port=_free_port(),
            world_size=1 + num_workers,
            rank=0,
        )

    return describe


def describe_ipc(num_workers: int) -> TrainerInitInfo:
    """CUDA IPC needs no rendezvous. Packed: one buffer of bounded size at a time."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    if num_workers != 1:
        raise ValueError(f"ipc serves one worker on this GPU, the engine has {num_workers}")
    return IPCTrainerInitInfo(rank=0, packed=True)


def build_sender(
    store: PayloadStore, transport: str, address: str, deadline_s: float
) -> VllmSender:
    """The sender of a run."""
    describe = describe_nccl(address) if transport == "nccl" else describe_ipc
    return VllmSender(store, describe, deadline_s)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
