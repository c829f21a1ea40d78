"""What crosses a process: prompts, completions, verdicts, training samples, weights.

All records are frozen. Token arrays are one-dimensional numpy arrays, which travel through an
object store without a copy; their lengths stand behind each field: ``[P]`` prompt tokens, ``[T]``
sampled tokens. This module knows nothing of where a record goes or who made it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from safeladder.conversation import Conversation
from safeladder.engine_profile import EngineLoad
from safeladder.images import PromptImage

Tokens = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
FinishReason = Literal["stop", "length"]
FailureCause = Literal[
    "deadline", "prompt_too_long", "engine_error", "image_unreadable", "environment_error"
]

THINK_END = "</think>"


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row of the data: what is asked, and which route of principles judges the answer."""

    id: str
    """Stable across epochs and runs: the row's ``id`` column, or a hash of its content."""
    messages: tuple[Message, ...]
    route: str
    """Key of ``routes`` in the config, for example ``safety`` or ``knowledge_rule``."""
    reference: str | None = None
    """Gold answer for reference-based verifiers."""
    images: tuple[str, ...] = ()
    """References (paths) to images; bytes are read where they are needed."""
    lang: str = "en"
    meta: Mapping[str, Any] = field(default_factory=dict)
    """All other columns of the row (JSON values); they reach the verifier."""


class GroupKey(NamedTuple):
    """Identity of a group of siblings within a run: pass over the data, position in that pass."""

    epoch: int
    ordinal: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.ordinal}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn."""

    num_samples: int
    max_new_tokens: int
    temperature: float
    """0 is greedy; log-probs are then taken at temperature 1."""
    top_p: float = 1.0
    seed: int | None = None
    """Sample k of the request is drawn with ``seed + k``; None draws freely. A sample that is
    continued has a seed of its own (``PartialCompletion.seed``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to generate one group, until its deadline. ``attempt`` and ``fence`` come back
    with every result, so that a late answer can never settle a newer attempt."""

    key: GroupKey
    attempt: int
    fence: int
    """Fencing epoch: raised by every driver start; lower ones are refused."""
    prompt: Prompt
    sampling: Sampling
    deadline_s: float
    """Seconds the engine may take for the whole group."""
    surplus: int = 0
    """Samples beyond the group's size; once the others are finished, the rest is stopped."""
    is_interruptible: bool = False
    """Answer with what is there (``InterruptedGroup``) at the deadline, or when asked to stop."""
    begun: Any | None = None
    """Handle of the ``PartialGroup`` to continue from. If it is lost, the group starts anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer, as token ids: text is never tokenized again."""

    index: int
    """Position k among its siblings."""
    prompt_tokens: Tokens
    """[P]"""
    tokens: Tokens
    """[T] sampled ids; the stop token is the last one only if it was sampled."""
    behavior_logprobs: Floats
    """[T] natural log, after temperature and top-p, as the engine sampled."""
    token_versions: Tokens
    """[T] policy version that made each token; never falls along the sequence."""
    text: str
    """Decoded answer without special tokens; of a conversation what the model said in it."""
    finish_reason: FinishReason
    loss_mask: Floats | None = None
    """[T] 1 where sampled, 0 where an environment wrote; None: all sampled."""
    conversation: Conversation | None = None

    @property
    def num_sampled(self) -> int:
        """Tokens that the policy made: the length of the answer."""
        return int(self.tokens.size if self.loss_mask is None else self.loss_mask.sum())

    def __post_init__(self) -> None:
        arrays = (self.tokens, self.behavior_logprobs, self.token_versions, self.loss_mask)
        sizes = [array.shape for array in arrays if array is not None]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"completion {self.index}: tokens, log-probs, versions and mask have the shapes "
                f"{sizes}: all must be equal"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """All completions of one lease: the payload that travels through the object store."""

    key: GroupKey
    attempt: int
    fence: int
    prompt: Prompt
    completions: tuple[Completion, ...]
    images: tuple[PromptImage, ...] = ()
    """Of the prompt, once for all siblings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupHeader:
    """What the coordinator may know of a group: ids and sizes, never token bytes."""

    key: GroupKey
    attempt: int
    fence: int
    engine: str
    lengths: tuple[int, ...]
    """Sampled tokens of each sibling."""
    min_version: int
    max_version: int
    sha256: str
    """Digest of all sampled token ids, in order of index."""
    generate_s: float
    """Seconds that engines worked on the group, those before an interruption included."""
    load: EngineLoad | None = None
    """How full the engine was when the group was done."""
    stopped: tuple[int, ...] = ()
    """Sampled tokens of each surplus sample: thrown away."""
    told: int = 0
    """Tokens that environments wrote, to all siblings and surplus samples together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFailure:
    """A lease that brought no group. Data, not an exception: it survives an actor boundary."""

    key: GroupKey
    attempt: int
    fence: int
    engine: str
    cause: FailureCause
    detail: str
    retryable: bool

    @classmethod
    def of(
        cls, lease: Lease, engine: str, cause: FailureCause, detail: str, *, retryable: bool
    ) -> GenerationFailure:
        """The failure of a lease on an engine."""
        return cls(
            key=lease.key, attempt=lease.attempt, fence=lease.fence, engine=engine, cause=cause,
            detail=detail, retryable=retryable,
        )  # fmt: skip


class VerdictStatus(StrEnum):
    """OK carries a score; the other two never do."""

    OK = "ok"
    NOT_APPLICABLE = "not_applicable"
    INVALID = "invalid"


class InvalidCause(StrEnum):
    """Closed list of reasons why a verifier brought no score."""

    TIMEOUT = "timeout"
    ERROR = "error"
    ABSTAIN = "abstain"
    MALFORMED = "malformed"
    OUT_OF_RANGE = "out_of_range"
    UNAVAILABLE = "unavailable"


class Verdict(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one verifier said about one sample under one principle. Strings and numbers only, so the
    garbage collector need not look at the many thousands that a coordinator holds.

    Raises ``ValueError`` on construction if a failure carries a score, if an OK verdict lacks one,
    or if a score or a disagreement is not finite and in [0, 1].
    """

    sample_id: str
    principle: str
    verifier: str
    verifier_version: str
    status: VerdictStatus
    score: float | None = None
    label: str | None = None
    evidence: str | None = None
    """Why, in a few words: the matched phrase, the judge's raw answer, the error."""
    cause: InvalidCause | None = None
    retryable: bool = False
    latency_ms: float = 0.0
    disagreement: float | None = None
    """How far apart the members of a quorum are, in [0, 1]; None if one judge spoke alone."""

    def as_row(self) -> dict[str, Any]:
        """The fields by name: one line of a log."""
        return msgspec.structs.asdict(self)

    def __post_init__(self) -> None:
        if self.status is VerdictStatus.OK:
            if self.score is None or not math.isfinite(self.score) or not 0 <= self.score <= 1:
                raise ValueError(
                    f"{self.principle}: an OK verdict needs a score in [0, 1], got {self.score}"
                )
        elif self.score is not None:
            raise ValueError(f"{self.principle}: a verdict that is {self.status} carries no score")
        if (self.status is VerdictStatus.INVALID) != (self.cause is not None):
            raise ValueError(f"{self.principle}: a cause belongs to INVALID, and INVALID needs one")
        if self.disagreement is not None and not 0 <= self.disagreement <= 1:
            raise ValueError(
                f"{self.principle}: a disagreement is in [0, 1], got {self.disagreement}"
            )


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sample to be judged. Verifiers see the response only, never the prompt's own examples."""

    sample_id: str
    """``epoch/ordinal/index``."""
    attempt: int
    messages: tuple[Message, ...]
    response: str
    """Decoded completion, chain of thought included."""
    finish_reason: FinishReason
    num_tokens: int
    route: str
    reference: str | None = None
    lang: str = "en"
    images: tuple[bytes, ...] = ()
    """Encoded image files (bytes, never addresses to fetch)."""
    meta: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last user turn."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def answer(self) -> str:
        """The visible part: what follows the last ``</think>``."""
        return self.response.rpartition(THINK_END)[2].strip()

    def idempotency_key(self, verifier: str, verifier_version: str) -> str:
        """Hex SHA-256 of (sample, attempt, response, verifier, version): equal work, equal key."""
        parts = (self.sample_id, str(self.attempt), self.response, verifier, verifier_version)
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One scored completion as the learner sees it: numbers only, no principle and no algorithm."""

    sample_id: str
    group: GroupKey
    prompt_tokens: Tokens
    """[P]"""
    tokens: Tokens
    """[T]"""
    loss_mask: Floats
    """[T] 1 where the token is trained, 0 for tool tokens."""
    behavior_logprobs: Floats
    """[T]"""
    token_versions: Tokens
    """[T]"""
    reference_logprobs: Floats | None
    """[T], or None when the objective has no reference term."""
    reward: float
    """The combined scalar of ``rewards.combine``."""
    finish_reason: FinishReason
    images: tuple[PromptImage, ...] = ()
    """Of the prompt, without their files; siblings share them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainGroup:
    """One admitted group in an order to the learner."""

    key: GroupKey
    attempt: int
    payload: Any
    """Handle of the ``RolloutGroup`` in the payload store."""
    reference: Any | None
    """Handle of the tuple of reference log-probs (one [T] array for each completion), or None."""
    rewards: tuple[float | None, ...]
    """Combined reward of each completion; None leaves that completion out of the batch."""
    audit: str
    """JSON text of the group's verdicts, stored beside the batch and never read by the learner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOrder:
    """One optimizer step's worth of groups, in lease order."""

    step: int
    """1 for the first step; the step makes policy version ``step``."""
    fence: int
    groups: tuple[TrainGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a committed optimizer step leaves behind."""

    step: int
    version: int
    """Policy version after the step."""
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPayloadsLost:
    """An order that was not carried out on any rank: payloads of it cannot be read any more."""

    step: int
    groups: tuple[tuple[GroupKey, int], ...]
    """(key, attempt) of each group that some rank could not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of a weight version."""

    name: str
    """Parameter name in the Hugging Face layout."""
    dtype: str
    """``float32``, ``bfloat16`` or ``float16``."""
    shape: tuple[int, ...]
    checksum: str
    """Hex xxh3-128 of the raw little-endian bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """A published version. Tensors that training never changes are left out: every engine has
    them from the base model."""

    version: int
    fence: int
    tensors: tuple[TensorSpec, ...]

    @property
    def num_bytes(self) -> int:
        """Raw size of all tensors."""
        width = {"float32": 4, "bfloat16": 2, "float16": 2}
        return sum(math.prod(t.shape) * width[t.dtype] for t in self.tensors)

    @property
    def digest(self) -> str:
        """Hex SHA-256 over names, shapes and checksums: what an engine echoes after loading."""
        text = "\n".join(f"{t.name} {t.dtype} {t.shape} {t.checksum}" for t in self.tensors)
        return hashlib.sha256(f"{self.version}\n{text}".encode()).hexdigest()
