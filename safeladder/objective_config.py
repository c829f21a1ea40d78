"""``learner.objective``: the policy loss, its drift, how rewards and token losses are weighted, and
what is done about tokens that an older policy sampled."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from safeladder.config_section import NonNegativeFloat, PositiveFloat, PositiveShare, Section

AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False, strict=True)]

TIS_CAP = 2.0
"""Yao et al. (2025), "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"."""
ICEPOP_BAND = (0.5, 5.0)
"""Ring-1T, arXiv 2510.18855."""


class OffPolicyConfig(Section):
    """The importance weight of tokens that an older policy sampled; its formulas stand in
    ``learners/off_policy.py``, advice in ``docs/off-policy.md``.

    The weight multiplies the policy loss; drift and reference KL stay as they are. It is a bounded
    form of r = pi / behavior. With ``cpg``, whose log-ratio is no weight, pi is the policy as it
    is; with ``ppo_clip`` it is the proximal policy, which its own ratio starts from.
    """

    correction: Literal["none", "clip", "truncate", "mask"] | None = None
    """``clip`` bounds r on both sides (CPGD), ``truncate`` from above (TIS), ``mask`` leaves tokens
    out whose r is outside the band (ICEPOP, MIS). null is ``clip`` with ``cpg``, ``truncate`` with
    ``ppo_clip`` around ``proximal`` (decoupled PPO), else ``none``."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """r of the token, of the whole answer (product), or the geometric mean over the answer (GSPO).
    Under ``mask`` it is the level that decides; what stays keeps the r of its token."""
    tokens: Literal["stale", "all"] = "stale"
    """``stale``: tokens older than the learner's version, and with ``cpg`` all in later inner
    epochs. ``all`` also corrects what engine and learner compute differently."""
    low: PositiveShare | None = None
    """Lower bound of r; null is 1 - ``clip_epsilon`` for ``clip``, 0.5 for ``mask``."""
    high: AtLeastOne | None = None
    """Upper bound of r; null is 1 + ``clip_epsilon`` for ``clip``, 2 for ``truncate``, 5 for
    ``mask``."""
    anchor: Literal["behavior", "proximal"] = "behavior"
    """Whose ratio the trust region of ``policy_loss`` bounds: the policy that sampled the token, or
    the one that the step starts from (the first inner epoch's own forward pass: no extra cost)."""


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
    off_policy: OffPolicyConfig = OffPolicyConfig()

    @property
    def drift_weight(self) -> float:
        """alpha in force."""
        default = 0.01 if self.policy_loss == "cpg" else 0.0
        return default if self.drift_coefficient is None else self.drift_coefficient

    @property
    def correction(self) -> Literal["none", "clip", "truncate", "mask"]:
        """``off_policy.correction`` in force."""
        if self.off_policy.correction is not None:
            return self.off_policy.correction
        if self.policy_loss == "cpg":
            return "clip"
        return "truncate" if self.off_policy.anchor == "proximal" else "none"

    @property
    def ratio_bounds(self) -> tuple[float, float]:
        """Bounds of r in force: ``off_policy.low`` and ``high``, else those of the correction."""
        defaults = {
            "none": (1.0, 1.0),
            "clip": (1 - self.clip_epsilon, 1 + self.clip_epsilon),
            "truncate": (0.0, TIS_CAP),
            "mask": ICEPOP_BAND,
        }
        low, high = defaults[self.correction]
        rule = self.off_policy
        return (low if rule.low is None else rule.low, high if rule.high is None else rule.high)

    @model_validator(mode="after")
    def _off_policy_fits_the_loss(self) -> Self:
        rule, correction = self.off_policy, self.correction
        if self.policy_loss == "ppo_clip" and rule.anchor == "behavior" and correction != "none":
            raise ValueError(
                f"off_policy.correction: {correction} would weight tokens twice, since the ratio "
                "of ppo_clip to the behavior policy is an importance weight already; set "
                "off_policy.anchor: proximal (decoupled PPO), or correction: none"
            )
        if rule.anchor == "proximal" and correction == "none":
            raise ValueError(
                "off_policy.anchor: proximal forgets which policy sampled a token, so it needs a "
                "correction: clip, truncate or mask"
            )
        if correction == "none":
            for key in ("level", "tokens", "low", "high"):
                if getattr(rule, key) != OffPolicyConfig.model_fields[key].default:
                    raise ValueError(
                        f"off_policy.{key} does nothing under correction: none; remove it, or set "
                        "a correction"
                    )
        if correction == "truncate" and rule.low is not None:
            raise ValueError(
                "off_policy.low: truncate has no lower bound; remove it, or set correction: clip"
            )
        if rule.level == "geometric" and (
            rule.high is None or (rule.low is None and correction != "truncate")
        ):
            raise ValueError(
                "off_policy.level: geometric needs its own bounds, since a mean over an answer "
                "stays close to 1 where single tokens do not; set low and high, such as 0.98 and "
                "1.02 (truncate: high alone)"
            )
        return self
