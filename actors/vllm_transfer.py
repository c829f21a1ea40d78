"""Drives vLLM's weight-transfer API from the actor's process: chunk by chunk, then the receipt.

Owns the order of the calls and what a failure means for the weights. Does not know requests,
pauses, or where the bytes came from; the worker's side is ``vllm_weights``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from actors.rollout import EngineFailedError
from actors.vllm_processes import WeightFile
from safeladder.ports import RawTensors
from safeladder.records import WeightManifest
from safeladder.tensors import num_bytes
from safeladder.weight_payload import split

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

Ask = Callable[[Any], Awaitable[Any]]
"""Awaits a call of vLLM under a deadline; raises ``EngineFailedError`` past it."""


async def transfer(
    llm: AsyncLLM, ask: Ask, manifest: WeightManifest, tensors: RawTensors, chunk_bytes: int
) -> None:
    """Load a version into every worker of a paused engine and hear from each what it now has.

    Raises ``ValueError`` if it was refused before anything was changed, and ``EngineFailedError``
    if a worker may hold a mixture of versions.
    """
    await ask(llm.start_weight_update())
    try:
        await _hand_over(llm, ask, manifest, tensors, chunk_bytes)
        await ask(llm.finish_weight_update(str(manifest.version)))
    except EngineFailedError:
        raise
    except Exception as error:  # vLLM passes every worker error on as a bare Exception
        if all(intact for _, _, intact in await _receipts(llm, ask, manifest)):
            raise ValueError(f"vLLM refused version {manifest.version}: {error}") from error
        raise EngineFailedError(
            f"version {manifest.version} was loaded half-way: {error}"
        ) from error
    await check_receipts(llm, ask, manifest)


async def check_receipts(llm: AsyncLLM, ask: Ask, manifest: WeightManifest) -> None:
    """Hear from every worker what it has now. Raises ``EngineFailedError`` if it is not this
    version, whole and byte for byte."""
    for version, digest, is_intact in await _receipts(llm, ask, manifest):
        if (version, digest, is_intact) != (manifest.version, manifest.digest, True):
            raise EngineFailedError(
                f"a worker echoes version {version} ({digest[:12]}) instead of "
                f"{manifest.version} ({manifest.digest[:12]})"
            )


async def _hand_over(
    llm: AsyncLLM, ask: Ask, manifest: WeightManifest, tensors: RawTensors, chunk_bytes: int
) -> None:
    """In chunks, so that the copy that another process needs stays small."""
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    specs = {spec.name: spec for spec in manifest.tensors}
    sizes = {name: num_bytes(spec) for name, spec in specs.items()}
    for names in split(sizes, chunk_bytes):
        with await asyncio.to_thread(WeightFile, [specs[n] for n in names], tensors) as file:
            request = WeightTransferUpdateRequest(update_info=file.update_info(manifest))
            await ask(llm.update_weights(request))


async def _receipts(
    llm: AsyncLLM, ask: Ask, manifest: WeightManifest
) -> list[tuple[int, str, bool]]:
    receipts: list[tuple[int, str, bool]] = await ask(
        llm.collective_rpc("weight_receipt", args=(manifest.version,))
    )
    return receipts
