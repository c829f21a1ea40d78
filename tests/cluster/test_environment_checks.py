from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.checks import preflight
from cluster.environment_checks import check_environment
from safeladder.errors import ConfigError, DataError, SafeladderError

from .checked_setup import build, save_headers


class Awaited:
    is_resumable = True

    def start(self) -> None: ...

    def close(self) -> None: ...

    def begin(self, prompt: Any, text: str) -> None: ...

    async def reply(self, state: Any, turn: Any) -> None: ...


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"path": "json:dumps"}, ConfigError, "is not a class"),
        ({"path": "json:Encoder"}, ConfigError, "did you mean 'JSONEncoder'"),
        ({"path": "json:JSONEncoder"}, ConfigError, "it lacks start, begin, reply, close, is_res"),
        ({"path": f"{__name__}:Awaited"}, ConfigError, "reply .* is a coroutine function"),
        (
            {"kind": "scripted", "options": {"colum": "x"}},
            ConfigError,
            "options.colum: unknown option; did you mean 'column'",
        ),
        (
            {"kind": "scripted", "max_turn_tokens": 2000},
            ConfigError,
            "max_turn_tokens is 2000, but all turns .* rollout.max_new_tokens: 1024",
        ),
        ({"kind": "scripted"}, DataError, "train.jsonl: prompt safety0: column 'turns' must be"),
    ],
)
def test_an_environment_that_cannot_work_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any], error: type[SafeladderError], said: str
) -> None:
    with pytest.raises(error, match=said):
        check_environment(build(tmp_path, rollout__environment=changes))


def test_kind_and_path_exclude_each_other(tmp_path: Path) -> None:
    for environment in ({}, {"kind": "scripted", "path": "a:B"}):
        with pytest.raises(ValidationError, match="name either a `kind` or a `path"):
            build(tmp_path, rollout__environment=environment)


def test_the_context_holds_what_an_environment_says(tmp_path: Path) -> None:
    save_headers(tmp_path / "model")
    environment = {"kind": "scripted", "reply_tokens": 100}
    config = build(tmp_path, rollout__environment=environment)
    assert config.rollout.max_model_tokens == 2148
    with pytest.raises(ConfigError, match=r"rollout\.environment\.reply_tokens is 2148, but"):
        preflight(config)


def test_scripted_rows_pass_the_check(tmp_path: Path) -> None:
    save_headers(tmp_path / "model")
    rows = [
        {"id": str(i), "prompt": "q", "route": route, "reference": "r", "turns": ["and?"]}
        for i, route in enumerate(("safety", "task"))
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    environment = {"kind": "scripted", "reply_tokens": 100}
    changes = {"environment": environment, "max_new_tokens": 512}
    preflight(build(tmp_path, **{f"rollout__{key}": value for key, value in changes.items()}))
