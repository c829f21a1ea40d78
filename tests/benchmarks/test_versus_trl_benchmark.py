"""TRL gets the same libraries, prompts and numbers as we, and is not quietly left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import versus_trl
from safeladder.config_loading import load_config

SHARED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate", "datasets")


def versions(lock: str) -> dict[str, str]:
    lines = Path("requirements", lock).read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.lower(): version for name, version in pairs}


def test_both_environments_have_the_same_versions_of_what_both_load() -> None:
    ours, theirs = versions("cpu.lock"), versions("bench-peers.txt")
    assert "trl" in theirs
    assert [theirs[name] for name in SHARED] == [ours[name] for name in SHARED]


def test_without_trls_environment_it_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versus_trl, "PEER", Path("no/such/python"))
    assert versus_trl.main([]) == 3
    assert "make bench-peers" in capsys.readouterr().err


def test_every_sampled_token_is_trained_on_our_side() -> None:
    config = load_config([versus_trl.CONFIG])
    assert not config.reward.filter_zero_variance
    assert config.model.dtype == "float32"
    assert len(config.placement.rollout_cores) + len(config.placement.learner_cores) == 2
