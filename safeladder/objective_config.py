"""``learner.objective``: the policy loss, its drift, what a reward is compared with, how token
losses are weighted, and what is done about tokens that an older policy sampled."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from safeladder.config_section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Section,
    Share,
)
from safeladder.objective_profiles import ProfileName, with_profile
from safeladder.off_policy_config import ICEPOP_BAND, TIS_CAP, OffPolicyConfig


class CanonConfig(Section):
    """``advantage: canon``: the length-conditional advantage of CANON, arXiv 2509.23962."""

    mu: Share = 0.5
    """Share of the comparison between short and long answers; the rest compares within a half."""
    alpha: PositiveShare = 0.9
    """What a long answer's reward counts when it is compared with short ones; 1 favors nobody."""
    anneal_steps: NonNegativeInt = 100
    """Steps over which alpha rises to 1 in a straight line; 0 keeps it as it is."""

    def alpha_at(self, step: int) -> float:
        """alpha of the ``step``-th step, from 1."""
        share = min(1.0, (step - 1) / self.anneal_steps) if self.anneal_steps else 0.0
        return self.alpha + (1 - self.alpha) * share


class ValueConfig(Section):
    """``advantage: gae``: a scalar head on the policy's last hidden state, and what it is for.

    The head is trained with the policy and kept in checkpoints; engines never see it."""

    gamma: PositiveShare = 1.0
    """Discount of a token later."""
    gae_lambda: Share = 0.95
    """1 is the return less the value, 0 the one-step error (GAE, arXiv 1506.02438)."""
    clip: PositiveFloat | None = 0.2
    """Farthest that a value may move in a step before its loss stops falling; null never clips."""
    coefficient: PositiveFloat = 0.1
    """Weight of the value loss beside the policy loss."""
    head_lr: PositiveFloat = 1e-4
    """Peak learning rate of the head, which starts at zero; warm-up as ``learner.lr``."""


class OverlongConfig(Section):
    """DAPO's soft penalty for answers near the limit (arXiv 2503.14476), added to the reward in
    the learner: min(0, -(length - (rollout.max_new_tokens - buffer)) / buffer * factor)."""

    buffer_tokens: PositiveInt | None = None
    """Tokens before the limit over which the penalty grows; null is a fifth of the limit."""
    factor: NonNegativeFloat = 0.0
    """Penalty at the limit; 0 is none."""

    def buffer(self, max_new_tokens: int) -> int:
        """The buffer in force."""
        return self.buffer_tokens or max(1, max_new_tokens // 5)


class ObjectiveConfig(Section):
    """Defaults are the ``cpgd`` profile: CPGD report, arXiv 2505.12504. Formulas and profiles stand
    in ``docs/objectives.md``."""

    profile: ProfileName = "default"
    """Named method that gives every key of this section which is not written beside it, and the
    KL to the reference; ``default`` is ``cpgd``."""
    policy_loss: Literal["cpg", "ppo_clip", "pg", "gspo", "cispo"] = "cpg"
    """``cpg`` clips the log-ratio; ``ppo_clip`` the ratio (GRPO); ``pg`` is the plain policy
    gradient; ``gspo`` clips one ratio for an answer; ``cispo`` weights by a truncated ratio."""
    clip_epsilon: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.2
    """Half width of the trust region of the ratio; ``cispo`` has no lower bound."""
    clip_epsilon_high: PositiveFloat | None = None
    """Upper half width where it differs (DAPO's clip-higher); null is ``clip_epsilon``."""
    dual_clip: Annotated[float, Field(gt=1, allow_inf_nan=False, strict=True)] | None = None
    """Ratio beyond which a bad token of ``ppo_clip`` loses its gradient; null never."""
    tight_to_loose: Share = 1.0
    """lam of CPGD's eps_i = lam * eps + (1 - lam) * eps * i / length; 1 is the same eps for all."""
    drift_coefficient: NonNegativeFloat | None = None
    """Weight alpha of the pull towards the behavior policy; null is 0.01 with ``cpg``, else 0."""
    drift_cap: PositiveFloat = 2.0
    """Cap c on (ratio - 1) in the drift gradient."""
    advantage: Literal["group_mean", "leave_one_out", "reward", "canon", "gae"] = "group_mean"
    """What a reward R is compared with: the mean of its group, the mean of its siblings (RLOO),
    nothing, the halves of its group by length (``canon``), or a value head (``gae``)."""
    group_weight: Literal["equal", "std", "clip_filter"] = "std"
    """w(x) on R - baseline: 1, 1/std of the group (GRPO's advantage), or the clip-filter weight."""
    group_weight_cap: PositiveFloat = 3.0
    """Cap of the clip-filter weight."""
    normalize: Literal["none", "batch"] = "none"
    """``batch``: z-score of the advantages over all trained tokens of the batch."""
    kl_in: Literal["loss", "return"] = "loss"
    """Where ``reference.kl_coefficient`` acts: as a term of the loss, or as a cost of each token
    in the return (REINFORCE++, PPO)."""
    aggregation: Literal[
        "token-mean", "prompt-token-mean", "seq-mean-token-mean", "seq-mean-token-sum"
    ] = "token-mean"
    """How token losses become one number; ``seq-mean-token-sum`` divides by the constant
    ``rollout.max_new_tokens``, so that no length is favored (Dr. GRPO)."""
    overlong: OverlongConfig = OverlongConfig()
    """Soft penalty for answers near the limit."""
    canon: CanonConfig = CanonConfig()
    """Settings of ``advantage: canon``."""
    value: ValueConfig = ValueConfig()
    """Settings of ``advantage: gae``."""
    off_policy: OffPolicyConfig = OffPolicyConfig()

    @model_validator(mode="before")
    @classmethod
    def _profile_gives_what_is_not_written(cls, tree: Any) -> Any:
        return with_profile(tree)

    @property
    def drift_weight(self) -> float:
        """alpha in force."""
        default = 0.01 if self.policy_loss == "cpg" else 0.0
        return default if self.drift_coefficient is None else self.drift_coefficient

    @property
    def epsilon_high(self) -> float:
        """Upper half width in force."""
        return self.clip_epsilon if self.clip_epsilon_high is None else self.clip_epsilon_high

    @property
    def has_ratio(self) -> bool:
        """Whether the policy loss is weighted by pi / anchor itself."""
        return self.policy_loss in ("ppo_clip", "gspo", "cispo")

    @property
    def correction(self) -> Literal["none", "clip", "truncate", "mask"]:
        """``off_policy.correction`` in force."""
        if self.off_policy.correction is not None:
            return self.off_policy.correction
        if not self.has_ratio:
            return "clip"
        return "truncate" if self.off_policy.anchor == "proximal" else "none"

    @property
    def ratio_bounds(self) -> tuple[float, float]:
        """Bounds of r in force: ``off_policy.low`` and ``high``, else those of the correction."""
        defaults = {
            "none": (1.0, 1.0),
            "clip": (1 - self.clip_epsilon, 1 + self.epsilon_high),
            "truncate": (0.0, TIS_CAP),
            "mask": ICEPOP_BAND,
        }
        low, high = defaults[self.correction]
        rule = self.off_policy
        return (low if rule.low is None else rule.low, high if rule.high is None else rule.high)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        for problem in (*self._misfits(), *self._without_effect()):
            raise ValueError(problem)
        self.off_policy.require_fit(self.policy_loss, self.correction, has_ratio=self.has_ratio)
        return self

    def _misfits(self) -> list[str]:
        found = []
        if self.advantage not in ("group_mean", "leave_one_out") and self.group_weight != "equal":
            found.append(
                f"advantage: {self.advantage} is not weighted by its group, so group_weight: "
                f"{self.group_weight} has no meaning; set group_weight: equal"
            )
        if self.policy_loss == "gspo" and (self.advantage == "gae" or self.kl_in == "return"):
            key = "advantage: gae" if self.advantage == "gae" else "kl_in: return"
            found.append(
                f"policy_loss: gspo has one ratio for an answer, but {key} gives each token an "
                "advantage of its own; take ppo_clip"
            )
        if self.advantage == "canon" and (self.overlong.factor or self.kl_in == "return"):
            key = "overlong" if self.overlong.factor else "kl_in: return"
            found.append(
                f"advantage: canon needs rewards that are not negative, and {key} takes something "
                "from them; remove one of the two"
            )
        return found

    def _without_effect(self) -> list[str]:
        """Keys that were set and that nothing would read."""
        found = []
        loss = self.policy_loss
        if self.dual_clip is not None and loss != "ppo_clip":
            found.append(f"dual_clip does nothing with policy_loss: {loss}; it is for ppo_clip")
        if self.dual_clip is not None and self.dual_clip <= 1 + self.epsilon_high:
            found.append(
                f"dual_clip {self.dual_clip} lies inside the trust region, which ends at "
                f"{1 + self.epsilon_high:g}; set a larger one, such as 3"
            )
        if self.tight_to_loose != 1 and loss not in ("cpg", "ppo_clip"):
            found.append(
                f"tight_to_loose does nothing with policy_loss: {loss}; it is for cpg and ppo_clip"
            )
        if self.overlong.buffer_tokens is not None and not self.overlong.factor:
            found.append("overlong.buffer_tokens does nothing with overlong.factor: 0; set both")
        if self.canon != CanonConfig() and self.advantage != "canon":
            found.append(f"canon does nothing with advantage: {self.advantage}")
        if self.value != ValueConfig() and self.advantage != "gae":
            found.append(f"value does nothing with advantage: {self.advantage}")
        return found
