"""An objective that would miss something of its samples is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from learners.preconditions import require_trainable
from safeladder.config import Config
from safeladder.errors import ConfigError
from tests.learners.bare_config import bare_config


def config(objective: dict[str, Any], **sections: Any) -> Config:
    limits = {"rollout": {"max_new_tokens": 64}}
    return bare_config({"objective": objective}, **limits, **sections)


@pytest.mark.parametrize(
    ("objective", "sections", "told"),
    [
        (
            {"profile": "ppo"},
            {"reference": {"kl_coefficient": 0.0}},
            r"kl_in: return needs log-probs of the reference, and reference\.kl_coefficient: 0",
        ),
        (
            {"profile": "dapo", "overlong": {"buffer_tokens": 65}},
            {},
            r"overlong\.buffer_tokens is 65, but .* at most rollout\.max_new_tokens = 64",
        ),
        (
            {"profile": "cale"},
            {"reward": {"combine": "decoupled"}},
            r"canon needs rewards that are not negative, and reward\.combine: decoupled makes",
        ),
        (
            {"profile": "cale"},
            {"reward": {"floors": {"p": 0.5}}},
            r"canon needs rewards that are not negative, and reward\.floors makes",
        ),
    ],
)
def test_an_objective_that_lacks_a_stream_is_refused_with_keys_and_way_out(
    objective: dict[str, Any], sections: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        require_trainable(config(objective, **sections))


@pytest.mark.parametrize("profile", ["default", "ppo", "dapo", "cale", "gspo"])
def test_profiles_can_be_trained_as_they_are(profile: str) -> None:
    require_trainable(config({"profile": profile}))
