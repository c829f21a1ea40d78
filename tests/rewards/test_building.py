"""From configuration to verifier, and the sentences that name what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.building import build_verifier, load_object, verifier_version
from rewards.safety import SafetyLabel, SafetyRules
from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError
from tests.rewards.samples import sample
from tests.rewards.stand_ins import WordRule

RULE = "tests.rewards.stand_ins:WordRule"


def build(verifier: str = RULE, **options: Any) -> Any:
    return build_verifier("safety", PrincipleConfig(verifier=verifier, options=options))


def test_a_verifier_is_built_by_name_with_its_principle_and_options() -> None:
    verifier = build(word="yes", weight=1)
    assert isinstance(verifier, WordRule)
    assert (verifier.principle, verifier.word, verifier.name) == ("safety", "yes", RULE)
    assert verifier.judge(sample("yes")).score == 1


def test_yaml_values_become_what_the_constructor_asks_for() -> None:
    verifier = build("rewards.safety:SafetyRules", scores={"Safe with refusal": 0.3})
    assert isinstance(verifier, SafetyRules)
    answer = sample("I'm sorry, but I can't help with that.", route="safety")
    assert verifier.judge(answer).label == SafetyLabel.REFUSAL
    assert verifier.judge(answer).score == 0.3


@pytest.mark.parametrize(
    ("verifier", "options", "message"),
    [
        ("rewards.safety", {}, "principles.safety.verifier: .* form `module:Class`"),
        ("rewards.safty:SafetyRules", {}, "principles.safety.verifier: .*'rewards.safety'"),
        ("rewards.safety:SafetyRule", {}, "principles.safety.verifier: .*'SafetyRules'"),
        ("nowhere.at_all:Thing", {}, "principles.safety.verifier: no module 'nowhere.at_all'"),
        ("rewards.safety:parse_safety_label", {}, "principles.safety.verifier: .*not a class"),
        ("tests.rewards.stand_ins:Unfit", {}, "principles.safety.verifier: .*not a verifier"),
        (RULE, {}, "principles.safety.options.word: missing"),
        (RULE, {"wrod": "x"}, "principles.safety.options.wrod: unknown option.*'word'"),
        (RULE, {"word": "x", "principle": "y"}, "options.principle: unknown option"),
        (RULE, {"word": "x", "weight": "much"}, "principles.safety.options.weight: .*'much'"),
        (RULE, {"word": "x", "mode": "some"}, "principles.safety.options.mode: .*'any' or 'all'"),
        (RULE, {"word": "x", "bounds": {"a": "b"}}, "principles.safety.options.bounds.a: "),
        (RULE, {"word": ""}, "principles.safety.options: word must not be empty"),
        ("rewards.judge:Judge", {"template": "safty", "completer": RULE}, "choose from general, "),
    ],
)
def test_every_fault_is_one_sentence_with_the_dotted_key_and_the_way_out(
    verifier: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(verifier, **options)
    assert "\n" not in str(caught.value)


def test_a_module_that_breaks_or_lacks_a_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks_at_import.py").write_text("1 / 0\n")
    (tmp_path / "lacks_a_package.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        build("breaks_at_import:V")
    with pytest.raises(ConfigError, match="'not_installed_anywhere', which is not installed"):
        build("lacks_a_package:V")


def test_a_principle_that_is_scored_elsewhere_has_nothing_to_build() -> None:
    config = PrincipleConfig.model_validate({"service": {"address": "localhost:1"}})
    with pytest.raises(ConfigError, match=r"principles\.safety\.verifier"):
        build_verifier("safety", config)


def test_versions_tell_options_and_code_apart() -> None:
    assert build(word="yes").version == build(word="yes").version
    assert build(word="yes").version != build(word="no").version
    assert verifier_version("1", {}) != verifier_version("2", {})
    assert load_object("rewards.building:verifier_version") is verifier_version
