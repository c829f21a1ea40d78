"""The objective that the config composes, on one packed row; ``losses`` reads as its formula.

Streams of the row's trained tokens in, [N] losses out. Chooses among the pure functions of
``objectives``, ``divergences``, ``off_policy`` and ``values``; runs no model and adds nothing up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.divergences import drift, kl_estimate
from learners.objectives import (
    cispo_loss,
    cpg_loss,
    gspo_loss,
    is_clipped,
    pg_loss,
    ppo_clip_loss,
    tight_to_loose,
)
from learners.off_policy import (
    ImportanceWeights,
    geometric_log_ratio,
    importance_weights,
    off_policy_log_ratio,
)
from learners.packing import PackedRow
from learners.token_advantages import TokenAdvantages
from learners.value_loss import value_loss
from safeladder.config import Config
from safeladder.objective_config import ObjectiveConfig
from safeladder.records import TrainingSample

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStreams:
    """What the objective needs of each trained token of a row, [N] each."""

    advantages: Tensor
    weights: Tensor
    behavior_logprobs: Tensor
    is_stale: Tensor
    """Older than the learner's version."""
    reference_logprobs: Tensor | None
    segments: Tensor
    """Which completion of the row the token belongs to, from 0."""
    progress: Tensor
    """i / |y| of the i-th of the |y| trained tokens of its completion."""
    returns: Tensor | None = None
    """Target of the value head."""
    values: Tensor | None = None
    """What the value head said before the step."""


def token_streams(
    row: PackedRow,
    samples: Sequence[TrainingSample],
    found: TokenAdvantages,
    weights: Sequence[Array],
    version: int,
    device: torch.device | str,
    values: Tensor | None = None,
) -> TokenStreams:
    """The streams of a row that has pieces; ``values`` [N] of the policy before the step."""

    def stream(arrays: Sequence[Array]) -> Tensor:
        return torch.from_numpy(row.gather(arrays).astype(np.float32)).to(device)

    references = [s.reference_logprobs for s in samples]
    counts = [piece.trained.size for piece in row.pieces]
    progress = np.concatenate([np.arange(1, n + 1, dtype=np.float32) / n for n in counts])
    return TokenStreams(
        advantages=stream(found.advantages),
        weights=stream(weights),
        behavior_logprobs=stream([s.behavior_logprobs for s in samples]),
        is_stale=stream([s.token_versions < version for s in samples]).bool(),
        reference_logprobs=stream([r for r in references if r is not None])
        if all(r is not None for r in references)
        else None,
        segments=torch.from_numpy(row.completions()).to(device),
        progress=torch.from_numpy(progress).to(device),
        returns=None if found.returns is None else stream(found.returns),
        values=values,
    )


def anchor_of(before: Tensor, stream: TokenStreams, config: Config) -> Tensor:
    """[N] log-probs of the policy around which the trust region lies; ``before``: those of the
    policy before the step."""
    is_proximal = config.learner.objective.off_policy.anchor == "proximal"
    return before if is_proximal else stream.behavior_logprobs


def weights_of(
    now: Tensor, before: Tensor, stream: TokenStreams, is_later_epoch: bool, config: Config
) -> ImportanceWeights:
    """What is left to correct once the ratio of the loss itself is taken into account."""
    objective = config.learner.objective
    rule = objective.off_policy
    # A loss without a ratio is no weight: all that lies between sampling and this pass is
    # corrected. A ratio starts from the policy before the step: what lies before that is.
    is_plain = not objective.has_ratio
    is_corrected = stream.is_stale | (rule.tokens == "all") | (is_later_epoch and is_plain)
    log_ratio = off_policy_log_ratio(
        now if is_plain else before, stream.behavior_logprobs, is_corrected
    )
    low, high = objective.ratio_bounds
    return importance_weights(
        log_ratio,
        stream.segments,
        correction=objective.correction,
        level=rule.level,
        low=low,
        high=high,
    )


def losses(
    logprobs: Tensor, anchor: Tensor, weights: Tensor, stream: TokenStreams, config: Config
) -> Tensor:
    """[N] importance weight * policy loss + alpha * drift + beta * KL to the reference."""
    objective, behavior = config.learner.objective, stream.behavior_logprobs
    total = weights * policy_losses(logprobs, anchor, stream, objective)
    if objective.drift_weight > 0:
        total = total + objective.drift_weight * drift(logprobs, behavior, objective.drift_cap)
    if config.reference.kl_coefficient > 0 and objective.kl_in == "loss":
        if stream.reference_logprobs is None:
            raise ValueError("reference.kl_coefficient is set, but a sample has no reference")
        kl = kl_estimate(logprobs, stream.reference_logprobs, config.reference.kl_estimator)
        total = total + config.reference.kl_coefficient * kl
    return total


def policy_losses(
    logprobs: Tensor, anchor: Tensor, stream: TokenStreams, objective: ObjectiveConfig
) -> Tensor:
    """[N] ``policy_loss`` of the config."""
    advantages = stream.advantages
    low, high = trust_region(stream, objective)
    match objective.policy_loss:
        case "pg":
            return pg_loss(logprobs, advantages)
        case "cpg":
            return cpg_loss(logprobs, anchor, advantages, low, high)
        case "ppo_clip":
            return ppo_clip_loss(logprobs, anchor, advantages, low, high, objective.dual_clip)
        case "gspo":
            return gspo_loss(
                logprobs, anchor, advantages, stream.segments,
                objective.clip_epsilon, objective.epsilon_high,
            )  # fmt: skip
        case "cispo":
            return cispo_loss(logprobs, anchor, advantages, objective.epsilon_high)


def trust_region(
    stream: TokenStreams, objective: ObjectiveConfig
) -> tuple[float | Tensor, float | Tensor]:
    """Lower and upper half width of the ratio's trust region, of all tokens or of each."""
    low, high = (
        tight_to_loose(epsilon, objective.tight_to_loose, stream.progress)
        for epsilon in (objective.clip_epsilon, objective.epsilon_high)
    )
    return low, high


def is_outside(
    logprobs: Tensor, anchor: Tensor, stream: TokenStreams, objective: ObjectiveConfig
) -> Tensor:
    """Boolean [N]: the clip decides the policy loss; with ``cispo``, the weight is its bound."""
    log_ratio = (logprobs - anchor).detach()
    if objective.policy_loss == "pg":
        return torch.zeros_like(log_ratio, dtype=torch.bool)
    if objective.policy_loss == "cispo":
        return log_ratio.exp() > 1 + objective.epsilon_high
    if objective.policy_loss == "gspo":
        log_ratio = geometric_log_ratio(log_ratio, stream.segments)
    low, high = trust_region(stream, objective)
    return is_clipped(log_ratio, stream.advantages, low, high, objective.dual_clip)


def value_losses(values: Tensor, stream: TokenStreams, config: Config) -> Tensor:
    """[N] loss of the value head."""
    clip = config.learner.objective.value.clip
    assert stream.values is not None, "a value head is trained, but was not asked before the step"
    assert stream.returns is not None, "a value head is trained, but has no targets"
    return value_loss(values, stream.values, stream.returns, clip)
