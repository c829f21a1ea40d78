"""The engine's end of a transfer from GPU to GPU, in the actor's process.

The engine asks the learner for a version and the learner makes vLLM's calls, one by one, through
``step``: vLLM's own trainer engines know their order. When they are done each worker says what it
now has, by checksums of the tensors as they arrived. A transfer that fails before the first call
has changed nothing; after it the engine may hold a mixture and is spent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.rollout import EngineFailedError, RolloutActor
from actors.vllm_transfer import Ask, check_receipts
from safeladder.ports import PeerFailedError, RawTensors, WeightLink
from safeladder.records import WeightManifest
from safeladder.weight_payload import WeightPayload

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class DirectTransfer:
    """Transfers of one engine, one after another; also its ``ports.Intake``, since nothing is read
    on this side."""

    def __init__(self, link: WeightLink, engine: str, transport: str, deadline_s: float) -> None:
        self.transport = transport
        self._link = link
        self._engine = engine
        self.deadline_s = deadline_s
        self._payload: WeightPayload | None = None
        self._llm: AsyncLLM | None = None
        self._ask: Ask | None = None
        self._is_touched = False

    async def take(self, manifest: WeightManifest, payload: WeightPayload) -> RawTensors:
        """Note where the learner finds the version."""
        self._payload = payload
        return {}

    async def run(
        self, llm: AsyncLLM, ask: Ask, manifest: WeightManifest, num_workers: int
    ) -> None:
        """Load the version taken last into a paused engine. Raises ``ValueError`` if nothing was
        changed, and ``EngineFailedError`` if a worker may hold a mixture of versions."""
        payload = self._payload
        assert payload is not None, "take() comes first"
        self._llm, self._ask, self._is_touched = llm, ask, False
        try:
            async with asyncio.timeout(self.deadline_s):
                await self._link.request(manifest, payload, self._engine, num_workers)
        except (PeerFailedError, TimeoutError) as error:
            reason = str(error) or f"not received within {self.deadline_s:g} s"
            text = f"version {manifest.version}: {reason}"
            raise (EngineFailedError if self._is_touched else ValueError)(text) from error
        finally:
            self._llm = self._ask = None
        await check_receipts(llm, ask, manifest)

    async def step(self, step: str, info: Mapping[str, Any]) -> None:
        """One of vLLM's calls, as the learner's end asks for it."""
        from vllm.distributed.weight_transfer.base import (
            WeightTransferInitRequest,
            WeightTransferUpdateRequest,
        )

        if self._llm is None or self._ask is None:
            raise EngineFailedError(f"{step}: no transfer is under way")
        self._is_touched = True
        match step:
            case "init":
                request = WeightTransferInitRequest(init_info=dict(info))
                await self._ask(self._llm.init_weight_transfer_engine(request))
            case "start":
                await self._ask(self._llm.start_weight_update())
            case "update":
                update = WeightTransferUpdateRequest(update_info=dict(info))
                await self._ask(self._llm.update_weights(update))
            case "finish":
                await self._ask(self._llm.finish_weight_update())
            case _:
                raise ValueError(f"{step!r} is no step of a transfer")


class DirectRolloutActor(RolloutActor):
    """The rollout role with the one more call that the learner's end makes."""

    def __init__(self, *arguments: Any, intake: DirectTransfer, **options: Any) -> None:
        super().__init__(*arguments, intake=intake, **options)
        self._transfer = intake

    async def transfer_step(self, step: str, info: Mapping[str, Any]) -> None:
        """See ``DirectTransfer.step``."""
        await self._transfer.step(step, info)
