"""Sequences in, packed rows out: micro-batches under a token budget, balanced over the ranks.

Sequences with the same prompt lie in one row with that prompt's tokens *once*: each completion
attends to its prompt and to itself, and its positions go on from the prompt. The last token of a
completion is only predicted, so it is no input. Log-probs are those of each sequence alone.
Pure numpy: ``packed_attention`` reads from ``spans`` who may attend to whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from safeladder.images import PromptImage
from safeladder.records import Floats, Tokens


class Packable(Protocol):
    """What packing reads of a sequence; ``records.TrainingSample`` is one."""

    @property
    def prompt_tokens(self) -> Tokens:
        """[P], not empty"""
        ...

    @property
    def tokens(self) -> Tokens:
        """[T]"""
        ...

    @property
    def loss_mask(self) -> Floats:
        """[T] of 0 and 1"""
        ...


class Span(NamedTuple):
    """A run of a row's tokens: a prompt, or the inputs of one completion."""

    length: int
    """Tokens, at least 1; spans follow each other without a gap."""
    prompt: int
    """Which span of the row is its prompt; a prompt is its own."""


class Piece(NamedTuple):
    """One sequence of a row."""

    sequence: int
    """Index in the list that was packed."""
    trained: npt.NDArray[np.int64]
    """Positions below T whose log-probs are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """One micro-batch: L input tokens, N wanted log-probs."""

    tokens: Tokens
    """[L]"""
    positions: Tokens
    """[L] positions within the own sequence; with images, ids are made of them elsewhere."""
    spans: tuple[Span, ...]
    """What the L tokens are, in order: prompts, each followed by its completions."""
    logit_index: Tokens
    """[N] input whose output predicts the n-th target."""
    targets: Tokens
    """[N]"""
    pieces: tuple[Piece, ...]
    """Sequences in the order of the N targets; empty marks padding, whose loss counts nothing."""
    images: Mapping[int, tuple[PromptImage, ...]] = field(default_factory=dict)
    """Span (a prompt) → its images."""

    def gather(self, arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Per-sequence [T] arrays (of all sequences that were packed) to one [N] stream."""
        return np.concatenate([arrays[p.sequence][p.trained] for p in self.pieces])

    def completions(self) -> npt.NDArray[np.int64]:
        """[N] which of the row's pieces a target belongs to, from 0."""
        return np.repeat(np.arange(len(self.pieces)), [p.trained.size for p in self.pieces])


def pack(
    sequences: Sequence[Packable],
    *,
    ranks: int,
    budget: int,
    bundles: Sequence[Sequence[int]] | None = None,
) -> list[list[PackedRow]]:
    """For each rank its micro-batches: equally many, each at most ``budget`` input tokens.

    ``bundles`` names sequences that lie in one row because a loss needs them together: each bundle
    shares one prompt and fits the budget; None bundles by equal prompts. Sequences without a
    trained token are left out; ranks with too little work get padding rows, so that collective
    operations pair up. Deterministic. Raises ``ValueError`` if a sequence exceeds the budget, has
    no prompt, or if no sequence is trained.
    """
    if bundles is None:
        bundles = _bundles(sequences, budget)
    lengths = [_bundle_tokens(sequences, bundle) for bundle in bundles]
    if max(lengths) > budget:
        raise ValueError(
            f"sequences that belong together have {max(lengths)} input tokens, more than "
            f"learner.micro_batch_tokens = {budget}"
        )
    num_rows = ranks * max(1, -(-sum(lengths) // (ranks * budget)))
    partition = _balance(lengths, num_rows)
    while max(sum(lengths[b] for b in part) for part in partition) > budget:
        num_rows += ranks
        partition = _balance(lengths, num_rows)
    partition.sort(key=lambda part: -sum(lengths[b] for b in part))
    rows = [_row(sequences, [bundles[b] for b in part]) for part in partition]
    rows += [_padding()] * (num_rows - len(rows))
    # Longest rows first, dealt back and forth, so that no rank always gets the longer one.
    turns = [rows[i : i + ranks] for i in range(0, num_rows, ranks)]
    dealt = [turn if i % 2 == 0 else turn[::-1] for i, turn in enumerate(turns)]
    return [[turn[rank] for turn in dealt] for rank in range(ranks)]


def _bundles(sequences: Sequence[Packable], budget: int) -> list[list[int]]:
    """Trained sequences by equal prompt, in order, cut where a bundle would exceed the budget."""
    by_prompt: dict[tuple[bytes, ...], list[list[int]]] = {}
    for index, sequence in enumerate(sequences):
        if not np.any(sequence.loss_mask):
            continue
        own = _bundle_tokens(sequences, [index])
        if own > budget or sequence.prompt_tokens.size == 0:
            raise ValueError(
                f"sequence {index} has {sequence.prompt_tokens.size} prompt tokens and {own} input "
                f"tokens; it needs a prompt, and at most learner.micro_batch_tokens = {budget}"
            )
        family = by_prompt.setdefault(_prompt_of(sequence), [[]])
        if _bundle_tokens(sequences, [*family[-1], index]) > budget:
            family.append([])
        family[-1].append(index)
    bundles = [bundle for family in by_prompt.values() for bundle in family]
    if not bundles:
        raise ValueError("the batch has no trained token")
    return bundles


def _images(sequence: Packable) -> tuple[PromptImage, ...]:
    """Sequences of text need not say that they have none."""
    found: tuple[PromptImage, ...] = getattr(sequence, "images", ())
    return found


def _prompt_of(sequence: Packable) -> tuple[bytes, ...]:
    """Equal for equal prompts: images of one size have the same tokens."""
    images = (image.identity.encode() for image in _images(sequence))
    return (sequence.prompt_tokens.tobytes(), *images)


def _bundle_tokens(sequences: Sequence[Packable], bundle: Sequence[int]) -> int:
    """Input tokens of one prompt with its completions."""
    prompt: int = sequences[bundle[0]].prompt_tokens.size
    return prompt + sum(sequences[i].tokens.size - 1 for i in bundle)


def _balance(lengths: Sequence[int], num_rows: int) -> list[list[int]]:
    """Bundles to at most ``num_rows`` rows of similar length (Karmarkar-Karp)."""
    if num_rows >= len(lengths):
        return [[index] for index in range(len(lengths))]
    if num_rows == 1:
        return [list(range(len(lengths)))]
    # Imported here: the package's __init__ pulls transformers in (seconds), which learners have
    # anyway and readers of this module need not.
    from openrlhf.utils.seqlen_balancing import get_seqlen_balanced_partitions

    parts: list[list[int]] = get_seqlen_balanced_partitions(
        list(lengths), k_partitions=num_rows, equal_size=False
    )
    return parts


def _row(sequences: Sequence[Packable], bundles: Sequence[Sequence[int]]) -> PackedRow:
    tokens: list[Tokens] = []
    positions: list[Tokens] = []
    spans: list[Span] = []
    logit_index: list[npt.NDArray[np.int64]] = []
    targets: list[Tokens] = []
    pieces: list[Piece] = []
    images: dict[int, tuple[PromptImage, ...]] = {}
    filled = 0
    for bundle in bundles:
        prompt = sequences[bundle[0]].prompt_tokens
        parent, prompt_end = len(spans), filled + prompt.size
        if shown := _images(sequences[bundle[0]]):
            images[parent] = shown
        tokens.append(prompt)
        positions.append(np.arange(prompt.size, dtype=np.int32))
        spans.append(Span(prompt.size, parent))
        filled = prompt_end
        for index in bundle:
            answer = sequences[index].tokens
            trained = np.flatnonzero(sequences[index].loss_mask)
            # Token t is predicted by the input before it: the prompt's last one for t = 0.
            logit_index.append(np.where(trained == 0, prompt_end - 1, filled + trained - 1))
            targets.append(answer[trained])
            pieces.append(Piece(index, trained))
            tokens.append(answer[:-1])
            positions.append(np.arange(prompt.size, prompt.size + answer.size - 1, dtype=np.int32))
            if answer.size > 1:
                spans.append(Span(answer.size - 1, parent))
            filled += answer.size - 1
    return PackedRow(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions),
        spans=tuple(spans),
        logit_index=np.concatenate(logit_index).astype(np.int32),
        targets=np.concatenate(targets),
        pieces=tuple(pieces),
        images=images,
    )


def _padding() -> PackedRow:
    """The smallest row that still runs every layer forward and backward."""
    zero = np.zeros(1, dtype=np.int32)
    return PackedRow(
        tokens=zero, positions=zero, spans=(Span(1, 0),), logit_index=zero, targets=zero, pieces=()
    )  # fmt: skip
