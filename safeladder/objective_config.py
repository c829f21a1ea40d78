"""``learner.objective``: the policy loss, its drift, how rewards and token losses are weighted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from safeladder.config_section import NonNegativeFloat, PositiveFloat, Section


class ObjectiveConfig(Section):
    """Defaults are the ``cpgd`` profile: CPGD report, arXiv 2505.12504."""

    policy_loss: Literal["cpg", "ppo_clip"] = "cpg"
    """``cpg`` clips the log-ratio; ``ppo_clip`` clips the ratio (GRPO)."""
    clip_epsilon: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.2
    """Half width of the trust region of the ratio."""
    drift_coefficient: NonNegativeFloat | None = None
    """Weight alpha of the pull towards the behavior policy; null is 0.01 with ``cpg``, 0 with
    ``ppo_clip``."""
    drift_cap: PositiveFloat = 2.0
    """Cap c on (ratio - 1) in the drift gradient."""
    group_weight: Literal["equal", "std", "clip_filter"] = "std"
    """w(x) on R - mean: 1, 1/std of the group (GRPO's advantage), or the clip-filter weight."""
    group_weight_cap: PositiveFloat = 3.0
    """Cap of the clip-filter weight."""
    aggregation: Literal["token-mean", "prompt-token-mean", "seq-mean-token-mean"] = "token-mean"
    """How token losses become one number."""

    @property
    def drift_weight(self) -> float:
        """alpha in force."""
        default = 0.01 if self.policy_loss == "cpg" else 0.0
        return default if self.drift_coefficient is None else self.drift_coefficient
