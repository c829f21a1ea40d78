"""A profile gives what is not written; what fits nothing is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from safeladder.config import Config
from safeladder.config_loading import load_config, resolved_yaml
from safeladder.errors import ConfigError
from safeladder.objective_config import ObjectiveConfig
from safeladder.objective_profiles import PROFILES

RUN = """
run: {name: r, steps: 1}
model: {path: m}
data: {train: [t.jsonl]}
principles: {p: {verifier: "rewards.exact:ExactAnswer"}}
routes: {safety: {p: 1.0}}
"""


def load(tmp_path: Path, *overrides: str) -> Config:
    (tmp_path / "run.yaml").write_text(RUN)
    return load_config([tmp_path / "run.yaml"], overrides)


def test_the_default_is_cpgd_and_leaves_the_reference_alone(tmp_path: Path) -> None:
    default, named = load(tmp_path), load(tmp_path, "learner.objective.profile=cpgd")
    assert default.learner.objective == ObjectiveConfig()
    assert default.reference == named.reference
    for key in ObjectiveConfig.model_fields.keys() - {"profile", "drift_coefficient"}:
        found = getattr(named.learner.objective, key)
        assert found == getattr(default.learner.objective, key), key
    assert named.learner.objective.drift_weight == default.learner.objective.drift_weight == 0.01


@pytest.mark.parametrize(
    ("profile", "loss", "low", "high", "advantage", "group_weight", "normalize", "aggregation"),
    [
        ("cpgd", "cpg", 0.2, 0.2, "group_mean", "std", "none", "token-mean"),
        ("lightrft", "cpg", 0.2, 0.2, "group_mean", "clip_filter", "none", "seq-mean-token-mean"),
        ("grpo", "ppo_clip", 0.2, 0.2, "group_mean", "std", "none", "seq-mean-token-mean"),
        ("dr_grpo", "ppo_clip", 0.2, 0.2, "group_mean", "equal", "none", "seq-mean-token-sum"),
        ("dapo", "ppo_clip", 0.2, 0.28, "group_mean", "std", "none", "token-mean"),
        ("rloo", "ppo_clip", 0.2, 0.2, "leave_one_out", "equal", "batch", "token-mean"),
        ("reinforce_pp", "ppo_clip", 0.2, 0.2, "reward", "equal", "batch", "seq-mean-token-mean"),
        (
            "reinforce_pp_baseline", "ppo_clip", 0.2, 0.2, "group_mean", "equal", "batch",
            "seq-mean-token-mean",
        ),
        ("gspo", "gspo", 3e-4, 4e-4, "group_mean", "std", "none", "seq-mean-token-mean"),
        ("cispo", "cispo", 0.2, 4.0, "group_mean", "std", "none", "token-mean"),
        ("ppo", "ppo_clip", 0.2, 0.2, "gae", "equal", "batch", "token-mean"),
        ("cale", "cpg", 0.2, 0.2, "canon", "equal", "none", "seq-mean-token-sum"),
    ],
)  # fmt: skip
def test_a_profile_is_the_set_of_values_that_the_docs_name(
    profile: str, loss: str, low: float, high: float, advantage: str, group_weight: str,
    normalize: str, aggregation: str,
) -> None:  # fmt: skip
    found = ObjectiveConfig.model_validate({"profile": profile})
    assert (found.policy_loss, found.clip_epsilon, found.epsilon_high) == (loss, low, high)
    assert (found.advantage, found.group_weight) == (advantage, group_weight)
    assert (found.normalize, found.aggregation) == (normalize, aggregation)
    assert found.drift_weight == (0.01 if profile == "cpgd" else 0)
    assert found.overlong.factor == (1 if profile == "dapo" else 0)
    page = (Path(__file__).parents[2] / "docs/objectives.md").read_text()
    line = next(row for row in page.splitlines() if row.startswith(f"| `{profile}` | "))
    assert f"`{aggregation}`" in line
    assert f"`{loss}`" in line


@pytest.mark.parametrize(
    ("profile", "coefficient", "estimator", "place"),
    [
        ("lightrft", 0.001, "k3", "loss"),
        ("grpo", 0.04, "k3", "loss"),
        ("rloo", 0.01, "k1", "return"),
        ("reinforce_pp", 0.01, "k1", "return"),
        ("ppo", 0.01, "k1", "return"),
        *((name, 0.0, "k3", "loss") for name in ("dapo", "gspo", "cispo", "dr_grpo", "cale")),
    ],
)
def test_a_profile_says_how_the_reference_acts(
    tmp_path: Path, profile: str, coefficient: float, estimator: str, place: str
) -> None:
    found = load(tmp_path, f"learner.objective.profile={profile}")
    assert (found.reference.kl_coefficient, found.reference.kl_estimator) == (
        coefficient, estimator,
    )  # fmt: skip
    assert found.learner.objective.kl_in == place
    assert found.reference.enabled == (coefficient > 0)


def test_single_keys_override_a_profile_at_any_depth(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "learner.objective.profile=dapo",
        "learner.objective.clip_epsilon_high=0.3",
        "learner.objective.overlong.buffer_tokens=64",
        "reference.kl_coefficient=0.02",
    )
    objective = found.learner.objective
    assert (objective.epsilon_high, objective.clip_epsilon) == (0.3, 0.2)
    assert (objective.overlong.buffer_tokens, objective.overlong.factor) == (64, 1.0)
    assert (found.reference.kl_coefficient, found.reference.kl_estimator) == (0.02, "k3")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_resolved_config_names_every_value_and_loads_back_equal(
    tmp_path: Path, profile: str
) -> None:
    config = load(tmp_path, f"learner.objective.profile={profile}")
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(config))
    assert load_config([tmp_path / "resolved.yaml"]) == config


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"advantage": "canon"}, "canon is not weighted by its group.*set group_weight: equal"),
        ({"advantage": "gae", "group_weight": "clip_filter"}, "gae is not weighted"),
        ({"advantage": "reward"}, "reward is not weighted by its group"),
        ({"profile": "gspo", "kl_in": "return"}, "one ratio for an answer, but kl_in: return"),
        ({"profile": "ppo", "kl_in": "loss", "policy_loss": "gspo"}, "but advantage: gae"),
        ({"profile": "cale", "overlong": {"factor": 1.0}}, "not negative, and overlong takes"),
        ({"profile": "cale", "kl_in": "return"}, "not negative, and kl_in: return takes"),
        ({"dual_clip": 3.0}, "dual_clip does nothing with policy_loss: cpg"),
        ({"profile": "dapo", "dual_clip": 1.25}, "dual_clip 1.25 lies inside.*ends at 1.28"),
        ({"profile": "cispo", "tight_to_loose": 0.5}, "tight_to_loose does nothing with"),
        ({"overlong": {"buffer_tokens": 4}}, "overlong.buffer_tokens does nothing with"),
        ({"canon": {"mu": 1.0}}, "canon does nothing with advantage: group_mean"),
        ({"profile": "grpo", "value": {"clip": None}}, "value does nothing with"),
        (
            {"profile": "cispo", "off_policy": {"correction": "clip"}},
            "twice, since the ratio of cispo",
        ),
        ({"profile": "grpoo"}, "Input should be 'default', 'cpgd', 'lightrft'"),
        ({"clip_epsilon_high": -0.1}, "greater than 0"),
    ],
)
def test_what_fits_nothing_is_refused_with_the_key_and_the_reason(
    tree: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        ObjectiveConfig.model_validate(tree)


@pytest.mark.parametrize("learner", ["5", "{objective: 5}", "{objective: {profile: [a]}}"])
def test_a_profile_that_is_no_name_is_the_schemas_business(tmp_path: Path, learner: str) -> None:
    (tmp_path / "run.yaml").write_text(f"{RUN}learner: {learner}\n")
    with pytest.raises(ConfigError, match=r"^learner\.?[a-z.]*: "):
        load_config([tmp_path / "run.yaml"])


def test_alpha_rises_in_a_straight_line_and_stays_at_one() -> None:
    canon = ObjectiveConfig.model_validate(
        {"profile": "cale", "canon": {"alpha": 0.8, "anneal_steps": 4}}
    ).canon
    assert [canon.alpha_at(step) for step in (1, 2, 3, 5, 9)] == pytest.approx(
        [0.8, 0.85, 0.9, 1.0, 1.0]
    )
    kept = canon.model_copy(update={"anneal_steps": 0})
    assert [kept.alpha_at(step) for step in (1, 99)] == [0.8, 0.8]
