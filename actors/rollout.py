"""The rollout role: a lease in, a group out; new weights between two tokens.

::

    generate(lease) ── engine.generate ──▶ completions ── store.put ──▶ GeneratedGroup
         │ interrupt, deadline ──▶ tokens so far ──────── store.put ──▶ InterruptedGroup
         │ engine or environment error, or not interruptible ─────────▶ GenerationFailure
    load_weights ──▶ read, verify ─▶ pause ─▶ load ─▶ resume   one at a time, requests live on

Owns deadlines, fencing and the accounting that ``status`` reports. Does not know
which engine works behind the port, where this object runs, or who calls it. No method raises
because of data: failures are records.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass, replace

from actors.lease_answers import (
    GeneratedGroup,
    finished_group,
    num_needed,
    partial_header,
)
from actors.profiling import measured
from actors.weight_intake import WeightIntake
from safeladder.conversation import EnvironmentFailedError, SampleFailure
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.partials import (
    InterruptCause,
    InterruptedGroup,
    PartialCompletion,
    PartialGroup,
)
from safeladder.ports import (
    CompletionSource,
    Dialogues,
    Intake,
    PayloadStore,
    PromptTooLongError,
    RolloutEngine,
)
from safeladder.records import (
    FailureCause,
    GenerationFailure,
    GroupKey,
    Lease,
    WeightManifest,
)
from safeladder.weight_payload import WeightPayload
from vision.reading import BadImageError

logger = logging.getLogger(__name__)

INTERRUPT_S = 20.0
"""An engine has so long to stop a group: a lease is answered at most this much too late."""


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
    profile: EngineProfile | None = None
    """What the engine can do; None before its start."""
    load: EngineLoad | None = None
    """How full it is; None before its start and after its death."""

    def has_loaded(self, manifest: WeightManifest) -> bool:
        """Whether this answers a ``load_weights`` of the manifest with success: the base model
        serves version 0 as well, so that the digest must be the manifest's, too."""
        serves = (self.served_version, self.digest) == (manifest.version, manifest.digest)
        return serves and self.failure is None


@dataclass(eq=False, slots=True)
class _Work:
    """A lease in flight."""

    is_interruptible: bool
    task: asyncio.Task[PartialGroup] | None = None
    cause: InterruptCause | None = None
    """Why it is being interrupted."""
    num_begun: int = 0
    """Tokens that it came with."""


def _request_id(lease: Lease) -> str:
    return f"{lease.key}/{lease.attempt}"


class RolloutActor:
    """One engine and the leases it works on. All public methods are coroutines."""

    def __init__(
        self,
        name: str,
        engine: RolloutEngine,
        store: PayloadStore,
        *,
        profile_tokens: int | None = None,
        intake: Intake | None = None,
        dialogues: Dialogues | None = None,
    ) -> None:
        """``profile_tokens``: most tokens of a sequence while the engine measures its speed at its
        start; None leaves that out. ``intake``: how versions are read, whole if None.
        ``dialogues``: samples are conversations through this engine, not single answers."""
        self._name = name
        self._engine = engine
        self._dialogues = dialogues
        self._source: CompletionSource = dialogues or engine
        self._store = store
        self._intake = intake or WeightIntake(store)
        self._running: dict[tuple[GroupKey, int], _Work] = {}
        self._updating = asyncio.Lock()
        self._fence = 0
        self._digest = ""
        self._death: str | None = None
        self._tokens_generated = 0
        self._busy_s = 0.0
        self._busy_since = 0.0
        self._profile_tokens = profile_tokens
        self._profile: EngineProfile | None = None

    async def start(self) -> EngineStatus:
        """Bring the engine up with the base model. Errors of the environment travel: an actor
        that cannot start has nothing to report."""
        await self._engine.start()
        if self._dialogues is not None:
            await self._dialogues.start()
        if self._profile_tokens is None:
            self._profile = self._engine.limits()
        else:
            self._profile = await measured(self._engine, self._profile_tokens)
        return await self.status()

    async def generate(self, lease: Lease) -> GeneratedGroup | InterruptedGroup | GenerationFailure:
        """Work off one lease within its deadline."""
        if lease.fence < self._fence:
            detail = f"fence {lease.fence} is older than {self._fence}"
            return self._failure(lease, "engine_error", detail, retryable=False)
        if self._death is not None:
            return self._failure(lease, "engine_error", self._death, retryable=True)
        self._fence = lease.fence
        can_go_on = self._dialogues is None or self._dialogues.is_resumable
        work = _Work(lease.is_interruptible and can_go_on)
        try:
            made = await self._complete(lease, work)
            self._tokens_generated += made.num_tokens - work.num_begun
            if len(made.completions) >= num_needed(lease):
                return await self._deliver(lease, made)
            return await self._hand_back(lease, made, work.cause or "asked")
        except TimeoutError:
            detail = f"not finished after {lease.deadline_s:g} s"
            return self._failure(lease, "deadline", detail, retryable=True)
        except (PromptTooLongError, BadImageError) as error:
            return self._failure(lease, error.failure_cause, str(error), retryable=False)
        except EnvironmentFailedError as error:
            return self._failure(lease, "environment_error", str(error), retryable=True)
        except Exception as error:  # noqa: BLE001 - here a failure becomes data for the coordinator
            self._note(error)
            detail = f"{type(error).__name__}: {error}"
            return self._failure(lease, "engine_error", detail, retryable=True)

    async def interrupt(self, key: GroupKey, attempt: int, fence: int) -> bool:
        """Let a lease be answered now, with what is there. False if it is not in flight here, not
        interruptible, or a newer driver's; then it is answered as if nobody had asked."""
        work = self._running.get((key, attempt))
        if work is None or fence < self._fence:
            return False
        return await self._interrupt(f"{key}/{attempt}", work, "asked")

    async def load_weights(self, manifest: WeightManifest, payload: WeightPayload) -> EngineStatus:
        """Take a published version: read and verify, pause, load, and in every case resume.

        A version that is already served, byte for byte, is acknowledged at once; an older one, or
        an older fence, is refused. The answer's ``served_version`` and ``digest`` are the
        acknowledgement; ``failure`` says why not.
        """
        async with self._updating:
            refusal = self._refusal(manifest)
            if refusal is not None or manifest.digest == self._digest:
                return self._status(refusal)
            self._fence = manifest.fence
            started = time.monotonic()
            try:
                tensors = await self._intake.take(manifest, payload)
                await self._engine.pause()
                try:
                    await self._engine.load(manifest, tensors)
                    self._digest = manifest.digest
                    self._note_link(manifest.num_bytes, time.monotonic() - started)
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
        for work in self._running.values():
            if work.task is not None:
                work.task.cancel()
        if self._dialogues is not None:
            await self._dialogues.close()
        await self._engine.close()

    async def _complete(self, lease: Lease, work: _Work) -> PartialGroup:
        """What the engine made of a lease until its end. Runs as a task of its own, so that
        ``close`` and a cancelled caller are told apart."""
        identity = (lease.key, lease.attempt)
        if identity in self._running:
            raise ValueError(f"group {lease.key} attempt {lease.attempt} is already in flight")
        if not self._running:
            self._busy_since = time.monotonic()
        work.task = task = asyncio.create_task(self._drain(lease, work))
        self._running[identity] = work
        try:
            await asyncio.wait({task}, timeout=lease.deadline_s)
            if not task.done():
                async with asyncio.timeout(INTERRUPT_S):
                    if await self._interrupt(_request_id(lease), work, "deadline"):
                        await asyncio.wait({task})
            if not task.done():
                raise TimeoutError
            if task.cancelled():
                raise RuntimeError("the actor closes")
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})
            del self._running[identity]
            if not self._running:
                self._busy_s += time.monotonic() - self._busy_since

    async def _interrupt(self, request_id: str, work: _Work, cause: InterruptCause) -> bool:
        if not work.is_interruptible:
            return False
        work.cause = work.cause or cause
        await self._source.interrupt(request_id)
        return True

    async def _drain(self, lease: Lease, work: _Work) -> PartialGroup:
        """The samples of a lease: all finished, or what there was when it was interrupted. With
        ``surplus`` the last ones may be unfinished in a finished group, too, or have failed."""
        begun = await self._begun(lease)
        work.num_begun = begun.num_tokens
        started = time.monotonic()
        images = begun.images
        if lease.prompt.images and not images:  # read once for a group, whoever goes on with it
            images = await self._engine.look(lease.prompt)
        done, rest, num_failed = list(begun.completions), [], 0
        if work.cause is None and begun.partials:
            request_id = _request_id(lease)
            stream = self._source.generate(
                request_id, lease.prompt, lease.sampling, begun.partials, images
            )
            # aclosing: leaving this block aborts, inside the engine, whatever still runs.
            async with contextlib.aclosing(stream) as samples:  # type: ignore[type-var]
                async for sample in samples:
                    if isinstance(sample, SampleFailure):
                        num_failed += 1
                        if num_failed > lease.surplus:
                            raise EnvironmentFailedError(f"sample {sample.index}: {sample.detail}")
                        rest.append(PartialCompletion.empty(sample.index))
                        continue
                    if isinstance(sample, PartialCompletion):
                        rest.append(sample)
                        continue
                    done.append(sample)
                    if lease.surplus and len(done) == num_needed(lease):
                        await self._source.interrupt(request_id)
        else:
            rest = list(begun.partials)
        seconds = begun.generate_s + time.monotonic() - started
        return PartialGroup(
            completions=tuple(done), partials=tuple(rest), generate_s=seconds, images=images
        )

    async def _begun(self, lease: Lease) -> PartialGroup:
        """What the lease goes on from. A payload that is lost costs its tokens, nothing else."""
        if lease.begun is not None:
            try:
                begun: PartialGroup = await self._store.get(lease.begun)
                return begun
            except KeyError as error:
                logger.warning("%s: group %s starts anew: %s", self._name, lease.key, error)
        partials = PartialCompletion.all_of(lease.sampling)
        return PartialGroup(completions=(), partials=partials, generate_s=0.0)

    async def _deliver(self, lease: Lease, made: PartialGroup) -> GeneratedGroup:
        group, header = finished_group(lease, made, self._name, self._load())
        return GeneratedGroup(header=header, payload=await self._store.put(group))

    async def _hand_back(
        self, lease: Lease, made: PartialGroup, cause: InterruptCause
    ) -> InterruptedGroup:
        payload = await self._store.put(made) if made.num_tokens else None
        header = partial_header(lease, made, self._name, cause)
        return InterruptedGroup(header=header, payload=payload)

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
            profile=self._profile,
            load=self._load(),
        )

    def _load(self) -> EngineLoad | None:
        if self._profile is None or self._death is not None:
            return None
        try:
            return self._engine.occupancy()
        except EngineFailedError:  # what asked for more than a number will tell
            return None

    def _note_link(self, num_bytes: int, seconds: float) -> None:
        """The first load of weights says how fast they come."""
        if self._profile is not None and self._profile.link_bytes_per_s is None and num_bytes:
            self._profile = replace(self._profile, link_bytes_per_s=num_bytes / max(seconds, 1e-9))
