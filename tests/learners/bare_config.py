"""The least that a config must say, for tests of what a learner makes of the rest."""

from __future__ import annotations

from typing import Any

from safeladder.config import Config


def bare_config(learner: dict[str, Any], **sections: Any) -> Config:
    """A run that has no model, no data and no verifier."""
    return Config.model_validate(
        {
            "run": {"name": "bare", "steps": 9},
            "model": {"path": "none"},
            "data": {"train": ["none.jsonl"]},
            "principles": {"p": {"verifier": "rewards.rules:Rule"}},
            "routes": {"safety": {"p": 1.0}},
            "learner": learner,
            **sections,
        }
    )
