"""The Protocols between rooms. A role depends on these, never on a place or a library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from safeladder.conversation import SampleFailure
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.images import PromptImage
from safeladder.partials import PartialCompletion
from safeladder.records import (
    Completion,
    FailureCause,
    Floats,
    Prompt,
    Sampling,
    ScoreRequest,
    Tokens,
    Verdict,
    WeightManifest,
)
from safeladder.weight_payload import WeightPayload

RawTensors = Mapping[str, npt.NDArray[np.uint8]]
"""Tensor name → its raw little-endian bytes, one-dimensional."""


class PromptTooLongError(ValueError):
    """The rendered prompt exceeds ``rollout.max_prompt_tokens``."""

    failure_cause: FailureCause = "prompt_too_long"


class PeerFailedError(RuntimeError):
    """A role that was called by another one raised, or is gone."""


class CompletionSource(Protocol):
    """Where the samples of a lease come from: an engine, or conversations that go through one. Both
    methods are those of ``RolloutEngine``; a conversation may fail as well."""

    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        begun: Sequence[PartialCompletion] | None = None,
        images: Sequence[PromptImage] = (),
    ) -> AsyncIterator[Completion | PartialCompletion | SampleFailure]:
        """Yield the samples as they finish; after ``interrupt`` each unfinished one as it is."""
        ...

    async def interrupt(self, request_id: str) -> None:
        """Stop a request between two tokens."""
        ...


class Dialogues(CompletionSource, Protocol):
    """Conversations with one environment, through one engine."""

    @property
    def is_resumable(self) -> bool:
        """Whether an interrupted sample can be continued, here or elsewhere."""
        ...

    async def start(self) -> None:
        """Bring the environment up. Its errors travel."""
        ...

    async def close(self) -> None:
        """Free it. What hangs is left behind."""
        ...


class RolloutEngine(Protocol):
    """Generates completions of the policy. One process owns one engine."""

    @property
    def served_version(self) -> int:
        """Version that makes the next token."""
        ...

    async def start(self) -> None:
        """Load the base model as version 0."""
        ...

    async def look(self, prompt: Prompt) -> tuple[PromptImage, ...]:
        """The images of a prompt as ``generate`` wants them. Raises ``BadImageError``."""
        ...

    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        begun: Sequence[PartialCompletion] | None = None,
        images: Sequence[PromptImage] = (),
    ) -> AsyncIterator[Completion | PartialCompletion]:
        """Yield the ``sampling.num_samples`` completions as they finish, in any order. ``images``
        are those of the prompt.

        With ``begun`` these samples are continued instead, under the version served now: none of
        their keys is taken from a cache of other weights, and ``sampling.max_new_tokens`` counts
        the tokens that they have. After ``interrupt`` each unfinished sample is yielded as it is.
        Raises ``PromptTooLongError``. Closing the iterator aborts what is still running.
        """
        ...

    async def interrupt(self, request_id: str) -> None:
        """Stop a request between two tokens: its iterator yields what is there and ends. A request
        that is not in flight is no error."""
        ...

    async def pause(self) -> None:
        """Stop making tokens, keep every request in flight. On return no token is being made,
        and each request's token count is known, so that version spans are exact."""
        ...

    async def load(self, manifest: WeightManifest, tensors: RawTensors) -> None:
        """Take new weights while paused. The caller has verified them; an engine whose bytes take
        another way from here to the model verifies what arrives.

        Raises ``ValueError`` if they do not fit the model, and then still serves the old version.
        """
        ...

    async def resume(self) -> None:
        """Go on with every request in flight, under the loaded version."""
        ...

    def limits(self) -> EngineProfile:
        """Its cache and batch, without any speed. It must be started."""
        ...

    def occupancy(self) -> EngineLoad:
        """How full it is. Costs nothing."""
        ...

    async def close(self) -> None:
        """Abort everything and end all child processes."""
        ...


class TokenScorer(Protocol):
    """A frozen policy that prices given tokens (the reference)."""

    async def logprobs(
        self,
        sequences: Sequence[tuple[Tokens, Tokens]],
        temperature: float,
        images: Sequence[PromptImage] = (),
    ) -> list[Floats]:
        """For each (prompt [P], tokens [T]): the [T] log-probs of the tokens, natural log, of
        logits / temperature. ``images`` stand in every prompt."""
        ...


class Verifier(Protocol):
    """Judges samples under one principle. Stateless; may be slow; may fail."""

    @property
    def name(self) -> str:
        """Import path or service name, for the audit trail."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same input could get another verdict: code version plus a hash of
        the options."""
        ...

    async def start(self) -> None:
        """Get ready (load, connect). Raises ``VerifierUnavailableError`` or ``ConfigError``."""
        ...

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """One verdict for each request, in order."""
        ...

    async def close(self) -> None:
        """Free what ``start`` took."""
        ...


class PayloadStore(Protocol):
    """Keeps large records alive beyond the actor that made them."""

    async def put(self, value: Any) -> Any:
        """Store and return a handle that fits into a small message."""
        ...

    async def get(self, handle: Any) -> Any:
        """The stored value. Raises ``KeyError`` if its owner is gone."""
        ...


class Peer(Protocol):
    """Another role, as a role may call it."""

    async def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """What the method returned. Raises ``PeerFailedError`` if it raised or its role is gone."""
        ...


class Intake(Protocol):
    """Reads published versions for one engine, while it still generates."""

    async def take(self, manifest: WeightManifest, payload: WeightPayload) -> RawTensors:
        """What ``RolloutEngine.load`` is then given. Raises ``ChecksumError``, and ``KeyError`` if
        a part is lost."""
        ...


class WeightLink(Protocol):
    """An engine's way to the learner, for versions that go from GPU to GPU."""

    async def request(
        self, manifest: WeightManifest, payload: WeightPayload, engine: str, num_workers: int
    ) -> None:
        """Let the learner send a version now, and return when it has been received. Meanwhile it
        calls ``transfer_step`` of this engine's role. Raises ``PeerFailedError``."""
        ...


class WeightSender(Protocol):
    """The learner's end of a transfer from GPU to GPU."""

    async def send(
        self,
        manifest: WeightManifest,
        payload: WeightPayload,
        engine: str,
        num_workers: int,
        control: Peer,
    ) -> None:
        """Send a published version to the workers of one engine, whose role is ``control``."""
        ...
