"""``docs/verifiers.md`` names what exists: classes, templates, labels, scores, options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rewards.building import check_options, load_object
from rewards.templates import load_template, template_names
from safeladder.config import PrincipleConfig

TEXT = (Path(__file__).parents[2] / "docs" / "verifiers.md").read_text(encoding="utf-8")
PRINCIPLES = {
    name: PrincipleConfig.model_validate(config)
    for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S)
    for name, config in yaml.safe_load(block)["principles"].items()
}


def test_every_class_in_it_loads() -> None:
    named = set(re.findall(r"`((?:rewards|actors)\.\w+:\w+)`", TEXT))
    assert len(named) >= 6
    assert all(load_object(path) for path in named)


@pytest.mark.parametrize("name", template_names())
def test_every_template_stands_there_with_its_scores(name: str) -> None:
    (row,) = re.findall(rf"^\|[^|]*\| `Judge`, `{name}`[^|]*\|(.*)\|$", TEXT, re.M)
    for label, score in load_template(name).scores.items():
        either = {f"{label} {score:g}"} | ({label} if name == "general" else set())
        assert any(re.search(rf"(?<![\w.]){re.escape(text)}(?![\w.])", row) for text in either)


@pytest.mark.parametrize("name", PRINCIPLES)
def test_the_snippets_have_options_that_their_class_takes(name: str) -> None:
    config = PRINCIPLES[name]
    assert config.verifier is not None
    cls = load_object(config.verifier)
    assert check_options(cls, config.options, "options")
    if completer := config.options.get("completer"):
        options = config.options["completer_options"]
        assert check_options(load_object(completer), options, "completer_options")
