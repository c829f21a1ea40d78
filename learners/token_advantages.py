"""From a batch of rewards to the advantage of each trained token, as the config composes it.

Shaping of the reward, comparison with siblings, KL inside the return, values, z-score: every step
is one of ``advantages``, ``length_conditioned`` and ``returns``. Every rank sees the whole batch,
so all is the same on all ranks, but for what needs values: those are known of the own rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.advantages import compute_advantages
from learners.length_conditioned import canon_advantages, overlong_penalties
from learners.returns import cost_to_go, generalized_advantages, moments, z_scores
from safeladder.config import Config
from safeladder.records import TrainingSample

Array = npt.NDArray[Any]
Total = Callable[[Mapping[str, float]], Mapping[str, float]]
"""The same keys, summed over the ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAdvantages:
    """What the policy and value losses are to move towards, for each sample of the batch."""

    advantages: list[Array]
    """[T] of each sample; 0 where nothing is trained, and for samples of other ranks if there are
    values."""
    returns: list[Array] | None
    """[T] targets of the value head, or None without one."""
    penalties: Array
    """[N] what the length of each sample took from its reward; 0 or less."""


def sample_advantages(
    samples: Sequence[TrainingSample], config: Config, step: int
) -> tuple[Array, Array]:
    """[N] advantages of whole samples, or their rewards if tokens are compared with values, and
    [N] penalties for their length. ``step`` counts from 1."""
    objective = config.learner.objective
    lengths = np.array([int(s.loss_mask.sum()) for s in samples])
    limit = config.rollout.max_new_tokens
    penalties = overlong_penalties(
        lengths, limit=limit, buffer=objective.overlong.buffer(limit),
        factor=objective.overlong.factor,
    )  # fmt: skip
    rewards = np.array([s.reward for s in samples], np.float64) + penalties
    groups = [s.group for s in samples]
    match objective.advantage:
        case "reward" | "gae":
            return rewards, penalties
        case "canon":
            truncated = [s.finish_reason == "length" for s in samples]
            alpha = objective.canon.alpha_at(step)
            return canon_advantages(
                rewards, groups, lengths, truncated, mu=objective.canon.mu, alpha=alpha
            ), penalties
        case baseline:
            return compute_advantages(
                rewards,
                groups,
                baseline=baseline,
                weight=objective.group_weight,
                weight_cap=objective.group_weight_cap,
            ), penalties


def token_advantages(
    samples: Sequence[TrainingSample],
    config: Config,
    step: int,
    values: Mapping[int, Array] | None,
    total: Total,
) -> TokenAdvantages:
    """The advantage of every trained token.

    ``values``: sample → [n] values before its trained tokens, of the samples of this rank; None
    without a value head. ``total`` sums over ranks; it is called on all of them or on none.
    Raises ``ValueError`` for rewards that the objective cannot compare.
    """
    objective = config.learner.objective
    scalars, penalties = sample_advantages(samples, config, step)
    kept = [np.flatnonzero(s.loss_mask) for s in samples]
    costs = [_costs(s, config) for s in samples]
    targets: list[Array] | None = None
    if values is None:
        own = list(range(len(samples)))
        found = [
            np.full(k.shape, a) - cost_to_go(c)
            for k, a, c in zip(kept, scalars, costs, strict=True)
        ]
    else:
        own, found, targets = list(values), [], [np.zeros(s.tokens.shape) for s in samples]
        for i in own:
            rewards = -costs[i]
            rewards[-1] += scalars[i]
            advantages, returns = generalized_advantages(
                rewards,
                values[i],
                gamma=objective.value.gamma,
                gae_lambda=objective.value.gae_lambda,
            )
            found.append(advantages)
            targets[i][kept[i]] = returns
    if objective.normalize == "batch":
        found = _normalized(found, total if values is not None else dict)
    spread = [np.zeros(s.tokens.shape) for s in samples]
    for i, one in zip(own, found, strict=True):
        spread[i][kept[i]] = one
    return TokenAdvantages(advantages=spread, returns=targets, penalties=penalties)


def _costs(sample: TrainingSample, config: Config) -> Array:
    """[n] cost of each trained token: beta times the estimate of its KL to the reference."""
    kept = sample.loss_mask > 0
    if config.learner.objective.kl_in != "return":
        return np.zeros(int(kept.sum()))
    if sample.reference_logprobs is None:
        raise ValueError(
            "learner.objective.kl_in is return, but a sample has no reference log-probs"
        )
    gap = (sample.behavior_logprobs - sample.reference_logprobs)[kept].astype(np.float64)
    estimates = {"k1": gap, "k2": gap**2 / 2, "k3": np.expm1(-gap) + gap}
    return config.reference.kl_coefficient * estimates[config.reference.kl_estimator]


def _normalized(found: list[Array], total: Total) -> list[Array]:
    """z-scores over the tokens of all ranks; in two passes, so that no digits cancel."""
    count, summed, _ = moments(found)
    first = total({"count": count, "sum": summed})
    mean = first["sum"] / first["count"]
    squares = total({"squares": moments(found, mean)[2]})
    return z_scores(found, mean, squares["squares"] / first["count"])
