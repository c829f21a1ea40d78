"""``docs/deliberation.md`` shows what works: its snippets are run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.deliberation.building import _require_environment, build_environment
from rewards.building import build_verifier
from rewards.search_steps import MalformedError, read_step
from safeladder.config import Config
from safeladder.conversation import ModelTurn
from tests.cluster.checked_setup import build

from .conftest import ask

TEXT = (Path(__file__).parents[2] / "docs" / "deliberation.md").read_text(encoding="utf-8")
SNIPPETS = [
    yaml.safe_load(found) for found in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S)
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_of_a_config_is_one(tmp_path: Path, snippet: dict[str, Any]) -> None:
    whole = build(tmp_path).model_dump()
    if "principles" in snippet and "routes" not in snippet:
        snippet = {**snippet, "routes": {"r": dict.fromkeys(snippet["principles"], 1.0)}}
    config = Config.model_validate({**whole, **snippet})
    if config.rollout.environment is not None:
        build_environment(config)
    for principle in snippet.get("principles", {}):
        build_verifier(principle, config.principles[principle])


def test_the_environment_of_ones_own_works_as_it_stands_there() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    room: dict[str, Any] = {}
    exec(code, room)
    cls = room["CountDown"]
    _require_environment(cls, "docs:CountDown")
    made = cls(start=2)
    reply, said = made.begin(ask("x"), "x"), []
    for number in (1, 2, 3):
        reply = made.reply(reply.state, ModelTurn(number=number, text="hm", is_cut=False))
        said.append(reply.text)
    assert (said, reply.is_over, reply.facts) == (["2 to go", "1 to go", ""], True, {"last": "hm"})


def test_every_name_of_a_fault_stands_in_the_table() -> None:
    table = TEXT.partition("| label of `search_format`")[2].partition("\n\n")[0]
    broken = ("<think>x</think>", "x", "<answer>x</answer>", "<think>x", "<think>x</think><a>b</a>")
    for text in broken:
        with pytest.raises(MalformedError) as fault:
            read_step(text)
        assert str(fault.value) in table
