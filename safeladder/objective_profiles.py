"""Named objectives: a profile is a complete set of values, which single keys may override.

Each value is published or, where a source leaves it open, ours; which is which stands beside it and
in ``docs/objectives.md``. A profile speaks for ``learner.objective`` and for the KL term of
``reference``; all other keys of a run stay what they are. Pure tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ProfileName = Literal[
    "default", "cpgd", "lightrft", "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp",
    "reinforce_pp_baseline", "gspo", "cispo", "ppo", "cale",
]  # fmt: skip

_NO_KL = {"kl_coefficient": 0.0, "kl_estimator": "k3"}
_KL_IN_RETURN = {"kl_coefficient": 0.01, "kl_estimator": "k1"}
"""k1 by the papers; the coefficient is OpenRLHF's default."""
_PPO: dict[str, Any] = {
    "policy_loss": "ppo_clip",
    "clip_epsilon": 0.2,
    "tight_to_loose": 1.0,
    "drift_coefficient": 0.0,
    "advantage": "group_mean",
    "group_weight": "equal",
    "normalize": "none",
    "kl_in": "loss",
    "aggregation": "token-mean",
}
_CPG = _PPO | {"policy_loss": "cpg"}


@dataclass(frozen=True, slots=True)
class Profile:
    """What a name stands for."""

    source: str
    """Where the method was published."""
    objective: Mapping[str, Any]
    """Key of ``learner.objective`` → value; keys without one keep their default."""
    reference: Mapping[str, Any] = field(default_factory=lambda: _NO_KL)
    """Key of ``reference`` → value."""


PROFILES: dict[str, Profile] = {
    "cpgd": Profile(
        "CPGD, arXiv 2505.12504, and its released code",
        _CPG | {"drift_coefficient": 0.01, "drift_cap": 2.0, "group_weight": "std"},
    ),
    "lightrft": Profile(
        "LightRFT's SafeWork script: CPG without drift, KL to the reference",
        _CPG
        | {
            "group_weight": "clip_filter",
            "group_weight_cap": 3.0,
            "aggregation": "seq-mean-token-mean",
        },
        {"kl_coefficient": 0.001, "kl_estimator": "k3"},
    ),
    "grpo": Profile(
        "GRPO, arXiv 2402.03300",
        _PPO | {"group_weight": "std", "aggregation": "seq-mean-token-mean"},
        {"kl_coefficient": 0.04, "kl_estimator": "k3"},
    ),
    "dr_grpo": Profile("Dr. GRPO, arXiv 2503.20783", _PPO | {"aggregation": "seq-mean-token-sum"}),
    "dapo": Profile(
        "DAPO, arXiv 2503.14476; its dynamic sampling is reward.filter_zero_variance",
        _PPO | {"clip_epsilon_high": 0.28, "group_weight": "std", "overlong": {"factor": 1.0}},
    ),
    "rloo": Profile(
        "RLOO, arXiv 2402.14740, with PPO's clip and a z-score, as the CPGD report runs it",
        _PPO | {"advantage": "leave_one_out", "normalize": "batch", "kl_in": "return"},
        _KL_IN_RETURN,
    ),
    "reinforce_pp": Profile(
        "REINFORCE++, arXiv 2501.03262",
        _PPO
        | {
            "advantage": "reward",
            "normalize": "batch",
            "kl_in": "return",
            "aggregation": "seq-mean-token-mean",
        },
        _KL_IN_RETURN,
    ),
    "reinforce_pp_baseline": Profile(
        "REINFORCE++-baseline, arXiv 2501.03262",
        _PPO | {"normalize": "batch", "aggregation": "seq-mean-token-mean"},
    ),
    "gspo": Profile(
        "GSPO, arXiv 2507.18071",
        _PPO
        | {
            "policy_loss": "gspo",
            "clip_epsilon": 3e-4,
            "clip_epsilon_high": 4e-4,
            "group_weight": "std",
            "aggregation": "seq-mean-token-mean",
        },
    ),
    "cispo": Profile(
        "CISPO, arXiv 2506.13585; the bound of 5 is ours, it is not published",
        _PPO | {"policy_loss": "cispo", "clip_epsilon_high": 4.0, "group_weight": "std"},
    ),
    "ppo": Profile(
        "PPO, arXiv 1707.06347, with GAE, arXiv 1506.02438",
        _PPO | {"advantage": "gae", "normalize": "batch", "kl_in": "return"},
        _KL_IN_RETURN,
    ),
    "cale": Profile(
        "CALE by way of CANON, arXiv 2509.23962, with CPG's clip; alpha and its schedule are ours",
        _CPG | {"advantage": "canon", "aggregation": "seq-mean-token-sum"},
    ),
}


def with_profile(tree: Any) -> Any:
    """``learner.objective`` with the values of its profile where it has none of its own; what is no
    table, or names no profile, comes back as it is for the schema to refuse."""
    profile = _profile_of(tree)
    return tree if profile is None else _under(profile.objective, tree)


def with_reference_of_profile(tree: Any) -> Any:
    """A whole config with the profile's values for ``reference`` where it has none of its own."""
    learner = tree.get("learner") if isinstance(tree, dict) else None
    profile = _profile_of(learner.get("objective") if isinstance(learner, dict) else None)
    reference = tree.get("reference", {}) if isinstance(tree, dict) else None
    if profile is None or not isinstance(reference, dict):
        return tree
    return tree | {"reference": _under(profile.reference, reference)}


def _profile_of(objective: Any) -> Profile | None:
    name = objective.get("profile") if isinstance(objective, dict) else None
    return PROFILES.get(name) if isinstance(name, str) else None


def _under(values: Mapping[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` over ``values``, tables key by key."""
    merged = dict(values) | own
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(own.get(key), dict):
            merged[key] = value | own[key]
    return merged
