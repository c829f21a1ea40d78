"""``learner.objective.off_policy``: what is done about tokens that an older policy sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from safeladder.config_section import PositiveShare, Section

AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False, strict=True)]
Correction = Literal["none", "clip", "truncate", "mask"]

TIS_CAP = 2.0
"""Yao et al. (2025), "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"."""
ICEPOP_BAND = (0.5, 5.0)
"""Ring-1T, arXiv 2510.18855."""


class OffPolicyConfig(Section):
    """The importance weight of tokens that an older policy sampled; its formulas stand in
    ``learners/off_policy.py``, advice in ``docs/off-policy.md``.

    The weight multiplies the policy loss; drift and reference KL stay as they are. It is a bounded
    form of r = pi / behavior. With ``cpg`` and ``pg``, which carry no weight, pi is the policy as
    it is; with a loss of ratios it is the proximal policy, which its own ratio starts from.
    """

    correction: Correction | None = None
    """``clip`` bounds r on both sides (CPGD), ``truncate`` from above (TIS), ``mask`` leaves tokens
    out whose r is outside the band (ICEPOP, MIS). null is ``clip`` with ``cpg`` and ``pg``,
    ``truncate`` with a loss of ratios around ``proximal`` (decoupled PPO), else ``none``."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """r of the token, of the whole answer (product), or the geometric mean over the answer (GSPO).
    Under ``mask`` it is the level that decides; what stays keeps the r of its token."""
    tokens: Literal["stale", "all"] = "stale"
    """``stale``: tokens older than the learner's version, and with ``cpg`` and ``pg`` all in later
    inner epochs. ``all`` also corrects what engine and learner compute differently."""
    low: PositiveShare | None = None
    """Lower bound of r; null is 1 - ``clip_epsilon`` for ``clip``, 0.5 for ``mask``."""
    high: AtLeastOne | None = None
    """Upper bound of r; null is 1 + ``clip_epsilon`` (or ``clip_epsilon_high``) for ``clip``, 2 for
    ``truncate``, 5 for ``mask``."""
    anchor: Literal["behavior", "proximal"] = "behavior"
    """Whose ratio the trust region of ``policy_loss`` bounds: the policy that sampled the token, or
    the one that the step starts from (the first inner epoch's own forward pass: no extra cost)."""

    def require_fit(self, policy_loss: str, correction: Correction, *, has_ratio: bool) -> None:
        """Raise ``ValueError`` if the ``correction`` in force makes no sense with the loss."""
        if has_ratio and self.anchor == "behavior" and correction != "none":
            raise ValueError(
                f"off_policy.correction: {correction} would weight tokens twice, since the ratio "
                f"of {policy_loss} to the behavior policy is an importance weight already; set "
                "off_policy.anchor: proximal (decoupled PPO), or correction: none"
            )
        if self.anchor == "proximal" and correction == "none":
            raise ValueError(
                "off_policy.anchor: proximal forgets which policy sampled a token, so it needs a "
                "correction: clip, truncate or mask"
            )
        if correction == "none":
            for key in ("level", "tokens", "low", "high"):
                if getattr(self, key) != OffPolicyConfig.model_fields[key].default:
                    raise ValueError(
                        f"off_policy.{key} does nothing under correction: none; remove it, or set "
                        "a correction"
                    )
        if correction == "truncate" and self.low is not None:
            raise ValueError(
                "off_policy.low: truncate has no lower bound; remove it, or set correction: clip"
            )
        if self.level == "geometric" and (
            self.high is None or (self.low is None and correction != "truncate")
        ):
            raise ValueError(
                "off_policy.level: geometric needs its own bounds, since a mean over an answer "
                "stays close to 1 where single tokens do not; set low and high, such as 0.98 and "
                "1.02 (truncate: high alone)"
            )
