"""The rollout role: a lease in, a group out; new weights between two tokens.

::

    generate(lease) ── engine.generate ──▶ completions ── store.put ──▶ GeneratedGroup
         │ deadline, engine error                                └────▶ GenerationFailure
    load_weights ──▶ pause ─▶ load ─▶ resume        one at a time, requests in flight live on

Owns deadlines, fencing and the accounting that ``status`` reports. Does not know
which engine works behind the port, where this object runs, or who calls it. No method raises
because of data: failures are records.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safeladder.ports import PayloadStore, PromptTooLongError, RolloutEngine
from safeladder.records import (
    Completion,
    FailureCause,
    GenerationFailure,
    GroupHeader,
    GroupKey,
    Lease,
    RolloutGroup,
    WeightManifest,
)

logger = logging.getLogger(__name__)


class EngineFailedError(RuntimeError):
    """The engine can serve no more (process dead, weights half loaded): replace its process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What one engine serves and has done."""

    name: str
    served_version: int
    digest: str
    """``WeightManifest.digest`` of the served version; empty for the base model."""
    groups_in_flight: int
    tokens_generated: int
    """Sampled tokens of finished groups, since start."""
    busy_s: float
    """Seconds with at least one group in flight, since start."""
    pid: int
    failure: str | None = None
    """Why the last ``load_weights`` brought no new version, or why ``is_dead``."""
    is_dead: bool = False
    """The engine cannot serve again; its process must be replaced."""

    def has_loaded(self, manifest: WeightManifest) -> bool:
        """Whether this answers a ``load_weights`` of the manifest with success: the base model
        serves version 0 as well, so that the digest must be the manifest's, too."""
        serves = (self.served_version, self.digest) == (manifest.version, manifest.digest)
        return serves and self.failure is None


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedGroup:
    """A finished lease: the header for the coordinator, the handle for everyone else."""

    header: GroupHeader
    payload: Any
    """Handle of the ``RolloutGroup`` in the payload store."""


def token_digest(completions: Sequence[Completion]) -> str:
    """Hex SHA-256 of all sampled ids (int32, little-endian), in order of index."""
    digest = hashlib.sha256()
    for completion in sorted(completions, key=lambda c: c.index):
        digest.update(completion.tokens.astype("<i4").tobytes())
    return digest.hexdigest()


class RolloutActor:
    """One engine and the leases it works on. All public methods are coroutines."""

    def __init__(self, name: str, engine: RolloutEngine, store: PayloadStore) -> None:
        self._name = name
        self._engine = engine
        self._store = store
        self._running: dict[tuple[GroupKey, int], asyncio.Task[list[Completion]]] = {}
        self._updating = asyncio.Lock()
        self._fence = 0
        self._digest = ""
        self._death: str | None = None
        self._tokens_generated = 0
        self._busy_s = 0.0
        self._busy_since = 0.0

    async def start(self) -> EngineStatus:
        """Bring the engine up with the base model. Errors of the environment travel: an actor
        that cannot start has nothing to report."""
        await self._engine.start()
        return await self.status()

    async def generate(self, lease: Lease) -> GeneratedGroup | GenerationFailure:
        """Work off one lease within its deadline."""
        if lease.fence < self._fence:
            detail = f"fence {lease.fence} is older than {self._fence}"
            return self._failure(lease, "engine_error", detail, retryable=False)
        if self._death is not None:
            return self._failure(lease, "engine_error", self._death, retryable=True)
        self._fence = lease.fence
        started = time.monotonic()
        try:
            completions = await self._complete(lease)
            seconds = time.monotonic() - started
            return await self._deliver(lease, completions, seconds)
        except TimeoutError:
            detail = f"not finished after {lease.deadline_s:g} s"
            return self._failure(lease, "deadline", detail, retryable=True)
        except PromptTooLongError as error:
            return self._failure(lease, "prompt_too_long", str(error), retryable=False)
        except Exception as error:  # noqa: BLE001 - here a failure becomes data for the coordinator
            self._note(error)
            detail = f"{type(error).__name__}: {error}"
            return self._failure(lease, "engine_error", detail, retryable=True)

    async def load_weights(self, manifest: WeightManifest, payload_handle: Any) -> EngineStatus:
        """Take a published version: pause, load, and in every case resume.

        ``payload_handle`` leads to the raw tensors. A version that is already served, byte for
        byte, is acknowledged at once; an older one, or an older fence, is refused. The answer's
        ``served_version`` and ``digest`` are the acknowledgement; ``failure`` says why not.
        """
        async with self._updating:
            refusal = self._refusal(manifest)
            if refusal is not None or manifest.digest == self._digest:
                return self._status(refusal)
            self._fence = manifest.fence
            try:
                tensors = await self._store.get(payload_handle)
                await self._engine.pause()
                try:
                    await self._engine.load(manifest, tensors)
                    self._digest = manifest.digest
                finally:
                    await self._engine.resume()
            except Exception as error:  # noqa: BLE001 - a failed update is reported, never raised
                logger.warning("%s: version %d not loaded: %s", self._name, manifest.version, error)
                self._note(error)
                return self._status(f"{type(error).__name__}: {error}")
            return self._status(None)

    async def status(self) -> EngineStatus:
        """A snapshot; costs nothing."""
        return self._status(None)

    async def close(self) -> None:
        """Give up all leases and end the engine with its children."""
        for task in self._running.values():
            task.cancel()
        await self._engine.close()

    async def _complete(self, lease: Lease) -> list[Completion]:
        """The engine's completions in order of index. Runs as a task of its own, so that
        ``close`` and a cancelled caller are told apart."""
        identity = (lease.key, lease.attempt)
        if identity in self._running:
            raise ValueError(f"group {lease.key} attempt {lease.attempt} is already in flight")
        if not self._running:
            self._busy_since = time.monotonic()
        task = asyncio.create_task(self._drain(lease))
        self._running[identity] = task
        try:
            async with asyncio.timeout(lease.deadline_s):
                await asyncio.wait({task})
            if task.cancelled():
                raise RuntimeError("the actor closes")
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})
            del self._running[identity]
            if not self._running:
                self._busy_s += time.monotonic() - self._busy_since

    async def _drain(self, lease: Lease) -> list[Completion]:
        request_id = f"{lease.key}/{lease.attempt}"
        stream = self._engine.generate(request_id, lease.prompt, lease.sampling)
        # aclosing: leaving this block aborts, inside the engine, whatever still runs.
        async with contextlib.aclosing(stream) as completions:  # type: ignore[type-var]
            found = [completion async for completion in completions]
        return sorted(found, key=lambda completion: completion.index)

    async def _deliver(
        self, lease: Lease, completions: list[Completion], seconds: float
    ) -> GeneratedGroup:
        group = RolloutGroup(
            key=lease.key,
            attempt=lease.attempt,
            fence=lease.fence,
            prompt=lease.prompt,
            completions=tuple(completions),
        )
        lengths = tuple(completion.tokens.size for completion in completions)
        header = GroupHeader(
            key=lease.key,
            attempt=lease.attempt,
            fence=lease.fence,
            engine=self._name,
            lengths=lengths,
            min_version=min(int(c.token_versions.min()) for c in completions),
            max_version=max(int(c.token_versions.max()) for c in completions),
            sha256=token_digest(completions),
            generate_s=seconds,
        )
        payload = await self._store.put(group)
        self._tokens_generated += sum(lengths)
        return GeneratedGroup(header=header, payload=payload)

    def _refusal(self, manifest: WeightManifest) -> str | None:
        if self._death is not None:
            return self._death
        if manifest.fence < self._fence:
            return f"fence {manifest.fence} is older than {self._fence}"
        served = self._engine.served_version
        if manifest.version < served:
            return f"version {manifest.version} is older than the served version {served}"
        return None

    def _note(self, error: Exception) -> None:
        if isinstance(error, EngineFailedError):
            self._death = str(error)

    def _failure(
        self, lease: Lease, cause: FailureCause, detail: str, *, retryable: bool
    ) -> GenerationFailure:
        return GenerationFailure.of(lease, self._name, cause, detail, retryable=retryable)

    def _status(self, failure: str | None) -> EngineStatus:
        running = time.monotonic() - self._busy_since if self._running else 0.0
        return EngineStatus(
            name=self._name,
            served_version=self._engine.served_version,
            digest=self._digest,
            groups_in_flight=len(self._running),
            tokens_generated=self._tokens_generated,
            busy_s=self._busy_s + running,
            pid=os.getpid(),
            failure=failure or self._death,
            is_dead=self._death is not None,
        )
