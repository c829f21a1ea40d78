"""Samples in the making: what an interrupted engine had, and what another one continues from.

An interrupted lease loses no token. Each unfinished sample becomes a ``PartialCompletion``, and the
group a ``PartialGroup`` in the payload store; the group's next lease carries its handle. The engine
then gets prompt + tokens so far and only the budget that is left, and the final ``Completion`` has
all tokens, each with the version that made it and the log-prob that it was sampled with.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from safeladder.conversation import Conversation
from safeladder.images import PromptImage
from safeladder.records import Completion, FinishReason, Floats, GroupKey, Sampling, Tokens

InterruptCause = Literal["asked", "deadline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialCompletion:
    """An unfinished sample; the arrays are those of ``Completion``."""

    index: int
    tokens: Tokens
    """[T] so far; may be empty. Never ends with a stop token, never at the budget, but in a
    conversation whose environment is to answer."""
    behavior_logprobs: Floats
    """[T]"""
    token_versions: Tokens
    """[T]"""
    loss_mask: Floats | None = None
    """[T]"""
    conversation: Conversation | None = None
    """Where a sample of several turns stands."""

    @property
    def num_sampled(self) -> int:
        """Tokens that the policy made."""
        return int(self.tokens.size if self.loss_mask is None else self.loss_mask.sum())

    @classmethod
    def empty(cls, index: int) -> PartialCompletion:
        """A sample that nothing has been made of yet."""
        nothing = np.empty(0, dtype=np.int32)
        return cls(
            index=index,
            tokens=nothing,
            behavior_logprobs=np.empty(0, dtype=np.float32),
            token_versions=nothing,
        )

    @classmethod
    def all_of(cls, sampling: Sampling) -> tuple[PartialCompletion, ...]:
        """The samples of a request, none begun."""
        return tuple(cls.empty(index) for index in range(sampling.num_samples))

    def and_then(
        self, tokens: Tokens, behavior_logprobs: Floats, token_versions: Tokens
    ) -> PartialCompletion:
        """This sample with the tokens that an engine added, three arrays of equal length."""
        mask = self.loss_mask
        return replace(
            self,
            tokens=np.concatenate([self.tokens, tokens]),
            behavior_logprobs=np.concatenate([self.behavior_logprobs, behavior_logprobs]),
            token_versions=np.concatenate([self.token_versions, token_versions]),
            loss_mask=None if mask is None else np.append(mask, np.ones_like(tokens, mask.dtype)),
        )

    def told(self, tokens: Tokens, version: int) -> PartialCompletion:
        """This sample with what an environment wrote: not sampled, so without a log-prob."""
        mask = np.ones(self.tokens.size, np.float32) if self.loss_mask is None else self.loss_mask
        zeros = np.zeros(tokens.size, np.float32)
        return replace(
            self.and_then(tokens, zeros, np.full(tokens.size, version, np.int32)),
            loss_mask=np.append(mask, zeros),
        )

    def finished(self, prompt: Tokens, text: str, reason: FinishReason) -> Completion:
        """The completion that this sample is, nothing missing any more."""
        return Completion(
            index=self.index,
            prompt_tokens=prompt,
            tokens=self.tokens,
            behavior_logprobs=self.behavior_logprobs,
            token_versions=self.token_versions,
            text=text,
            finish_reason=reason,
            loss_mask=self.loss_mask,
            conversation=self.conversation,
        )

    def seed(self, sampling: Sampling) -> int | None:
        """What the next token is drawn with: ``sampling.seed`` + index for a new sample. A
        continued one has a seed of its own, made of that and the tokens so far: with the same one
        it would meet the random numbers again that made its first tokens. So a seed reproduces
        an answer only if it is interrupted at the same token, or never."""
        if sampling.seed is None:
            return None
        own = sampling.seed + self.index
        if not self.tokens.size:
            return own
        digest = hashlib.sha256(f"{own}/{self.tokens.size}".encode()).digest()
        return int.from_bytes(digest[:6], "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialGroup:
    """All samples of an interrupted lease: the payload that a later lease continues from."""

    completions: tuple[Completion, ...]
    """Those that were finished, in the order in which they finished."""
    partials: tuple[PartialCompletion, ...]
    """All others."""
    generate_s: float
    """Seconds that engines worked on it so far."""
    images: tuple[PromptImage, ...] = ()
    """Of the prompt, as the engine before read them."""

    @property
    def samples(self) -> tuple[Completion | PartialCompletion, ...]:
        """All samples, the finished ones first."""
        return (*self.completions, *self.partials)

    @property
    def num_tokens(self) -> int:
        """Tokens sampled so far."""
        return sum(sample.num_sampled for sample in self.samples)

    @property
    def min_version(self) -> int | None:
        """Version of the oldest token; None if there is none."""
        begun = (sample for sample in self.samples if sample.tokens.size)
        return min((int(sample.token_versions.min()) for sample in begun), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialHeader:
    """What the coordinator may know of an interrupted lease."""

    key: GroupKey
    attempt: int
    fence: int
    engine: str
    cause: InterruptCause
    """``asked`` by the coordinator, or the lease's own ``deadline``."""
    num_tokens: int
    """Made so far, over all samples and all leases."""
    min_version: int | None
    """Version of the oldest token; None without one."""
    generate_s: float
    """As in ``PartialGroup``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptedGroup:
    """The answer to an interrupted lease."""

    header: PartialHeader
    payload: Any | None
    """Handle of the ``PartialGroup``; None if there is no token."""
