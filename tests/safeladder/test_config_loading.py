from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from safeladder.config import Config
from safeladder.config_loading import (
    _parse,
    config_hash,
    json_schema,
    load_config,
    resolved_yaml,
    shareable,
    to_yaml,
)
from safeladder.errors import ConfigError

BASE = """
run: {name: demo, steps: 3}
model: {path: models/tiny}
data: {train: [train.jsonl]}
principles:
  safety:
    verifier: rewards.safety:SafetyRules
    options: {phrases: [no]}
    service: {spawn: true}
routes:
  safety: {safety: 1.0}
"""


def write(tmp_path: Path, *texts: str) -> list[Path]:
    paths = [tmp_path / f"{i}.yaml" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def load(tmp_path: Path, *overlays: str, overrides: tuple[str, ...] = ()) -> Config:
    return load_config(write(tmp_path, BASE, *overlays), overrides)


def refusal(tmp_path: Path, *overlays: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *overlays, overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_later_files_win_key_by_key_and_overrides_come_last(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "learner: {lr: 2e-6, zero_stage: 3}",
        "learner: {lr: 3e-6}",
        overrides=("learner.lr=1e-6", "schedule.max_staleness=0"),
    )
    assert config.learner.lr == 1e-6
    assert config.learner.zero_stage == 3
    assert config.schedule.max_staleness == 0
    assert config.run.steps == 3


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "+1e-6", "1.e-6", ".000001", "0.000001"])
def test_every_way_to_write_a_small_number_is_a_number(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, overrides=(f"principles.safety.options.x={text}",))
    assert config.principles["safety"].options["x"] == 1e-6


def test_plain_words_stay_words(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "monitor: {wandb: off}",
        overrides=("principles.safety.options={a: no, b: 1:30, c: 007, d: nullable, e: true}",),
    )
    assert config.monitor.wandb == "off"
    options = config.principles["safety"].options
    assert options == {
        "phrases": ["no"],
        "a": "no",
        "b": "1:30",
        "c": "007",
        "d": "nullable",
        "e": True,
    }


def test_a_list_is_replaced_as_a_whole(tmp_path: Path) -> None:
    assert load(tmp_path, "data: {train: [b.jsonl]}").data.train == (Path("b.jsonl"),)


def test_swapping_a_spawned_rule_verifier_for_a_judge_takes_a_few_lines(tmp_path: Path) -> None:
    swap = """
    principles:
      safety:
        verifier: rewards.judge:Judge
        options: {endpoint: "http://localhost:8000/v1"}
        service: null
    """
    safety = load(tmp_path, swap).principles["safety"]
    assert safety.verifier == "rewards.judge:Judge"
    assert safety.service is None
    assert safety.options == {"endpoint": "http://localhost:8000/v1"}


def test_options_merge_while_the_verifier_stays_the_same(tmp_path: Path) -> None:
    for overlay in (
        "principles: {safety: {options: {k: 1}}}",
        "principles: {safety: {verifier: rewards.safety:SafetyRules, options: {k: 1}}}",
    ):
        assert load(tmp_path, overlay).principles["safety"].options == {"phrases": ["no"], "k": 1}


def test_null_in_an_override_brings_the_default_back(tmp_path: Path) -> None:
    config = load(
        tmp_path, "learner: {train_last_layers: 4, lr: 0.5}", overrides=("learner.lr=null",)
    )
    assert config.learner.lr == 1e-6
    assert config.learner.train_last_layers == 4


def test_an_unknown_key_is_refused_with_its_dotted_name_and_the_nearest_valid_one(
    tmp_path: Path,
) -> None:
    assert refusal(tmp_path, "learner: {objective: {clip_epsilom: 0.1}}") == (
        "learner.objective.clip_epsilom is not a key of the config; "
        "did you mean learner.objective.clip_epsilon?"
    )
    assert "principles.safety.timeout_s?" in refusal(
        tmp_path, "principles: {safety: {timeouts: 3}}"
    )
    assert "did you mean learner.lr or sft.lr or" in refusal(tmp_path, overrides=("lr=1e-6",))
    assert "did you mean fleets.a.actors?" in refusal(tmp_path, "fleets: {a: {actorz: 1}}")
    assert "valid here: address, insecure, max_batch" in refusal(
        tmp_path, "principles: {safety: {service: {zzz: 1}}}"
    )
    assert "data.train.0.spilt is not a key of the config; did you mean data.train.0.split?" in (
        refusal(tmp_path, "data: {train: [{dataset: a, spilt: b}]}")
    )


def test_every_problem_gets_its_own_line_with_the_value(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "learner: {lr: -1, ranks: two}\nrollout: {engine: vlm}").splitlines()
    assert len(lines) == 3
    assert "rollout.engine: input should be 'vllm' or 'transformers', not 'vlm'" in lines
    assert "learner.lr: input should be greater than 0, not -1" in lines
    assert any(line.startswith("learner.ranks:") and line.endswith("not 'two'") for line in lines)


def test_a_key_that_takes_one_of_two_kinds_is_named_as_it_is_written(tmp_path: Path) -> None:
    told = refusal(tmp_path, overrides=("learner.lora={target: q_proj}",)).splitlines()
    assert [line.split(":")[0] for line in told] == ["learner.lora.target"] * 2


def test_rules_between_parts_are_told_in_their_own_words(tmp_path: Path) -> None:
    assert refusal(tmp_path, "routes: {normal: {helpful: 1}}").startswith(
        "routes.normal names the principle 'helpful', which is not in `principles` (safety)"
    )
    assert refusal(tmp_path, "principles: {safety: {service: {address: 'h:1'}}}").startswith(
        "principles.safety.service: give either `address: host:port` or `spawn: true`"
    )


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path, "run: {steps: null}") == "run.steps is missing: every config must give it"
    )


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = refusal(tmp_path, "learner:\n  lr: 1e-6\n  ranks: 1\n  lr: 2e-6\n")
    assert message.endswith("1.yaml:4: the key 'lr' stands twice, first in line 2")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1,\n", "1.yaml:2: "),
        ("- a\n- b\n", "1.yaml:1: holds a list, not `key: value` lines"),
        ("just words", "1.yaml:1: holds a str, not `key: value` lines"),
        ("a: !!python/object:os.system {}", "1.yaml:1: "),
        ("\x00", "1.yaml:1: is not YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_with_path_and_line(
    tmp_path: Path, text: str, told: str
) -> None:
    assert told in refusal(tmp_path, text)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such config file"):
        load_config([tmp_path / "nowhere.yaml"])
    with pytest.raises(ConfigError, match=r"cannot be read|is no text file"):
        load_config([tmp_path])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot be read|is no text file"):
        load_config([tmp_path / "binary.yaml"])


@pytest.mark.parametrize("override", ["learner.lr", "=3", "learner..lr=3", ".lr=3"])
def test_an_override_without_key_or_value_is_refused(tmp_path: Path, override: str) -> None:
    assert "is no override: write it as section.key=value" in refusal(
        tmp_path, overrides=(override,)
    )


def test_an_empty_overlay_changes_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "", "# only a comment\n") == load(tmp_path)


def test_the_resolved_config_loads_back_equal_and_the_hash_follows_the_values(
    tmp_path: Path,
) -> None:
    config = load(tmp_path, overrides=("learner.lr=3e-7", "run.name='007'", "monitor.wandb=off"))
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved_yaml(config))
    assert load_config([again]) == config
    assert config_hash(load_config([again])) == config_hash(config)
    assert config_hash(load(tmp_path, overrides=("run.seed=1",))) != config_hash(load(tmp_path))


def test_the_schema_names_every_section_and_refuses_unknown_keys() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False


SCALARS = st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text()


@given(SCALARS)
@example("0E0")
@example("1e-6")
@example("off")
@example("007")
@example("12:30")
def test_any_scalar_is_read_back_equal_by_us_and_by_a_reader_of_yaml_1_1(
    value: float | int | str,
) -> None:
    text = to_yaml({"x": value})
    assert _parse(text, "test") == {"x": value}
    assert yaml.safe_load(text) == {"x": value}


def test_what_sounds_like_a_secret_is_masked_for_other_eyes(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "principles: {safety: {options: {api_key: abc, max_tokens: 5, client: {password: def}}}}",
    )
    options = shareable(config)["principles"]["safety"]["options"]
    assert options == {
        "phrases": ["no"], "api_key": "***", "max_tokens": 5, "client": {"password": "***"}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("learner.lr=true", "learner.lr: input should be a valid number, not True"),
        ('learner.lr="0.1"', "learner.lr: input should be a valid number, not '0.1'"),
        ("run.steps=true", "run.steps: input should be a valid integer, not True"),
        ('run.steps="20"', "run.steps: input should be a valid integer, not '20'"),
        ("run.deterministic=1", "run.deterministic: input should be a valid boolean, not 1"),
        ("learner.betas=[1.0, 1.0]", "learner.betas.0: input should be less than 1, not 1.0"),
        ("rollout.vllm.gpu_memory_utilization=0", "utilization: input should be greater than 0"),
        ("placement.object_store_gib=0.01", "input should be greater than or equal to 0.08"),
        ("model.dtype=float16", "model.dtype: input should be 'float32' or 'bfloat16'"),
        ("principles.safety.service={address: 'h:99999'}", "'h:99999': a port is a number from 1"),
        ("principles.safety.service={address: 'h:0'}", "'h:0': a port is a number from 1 to 65535"),
        ("principles.safety.service={address: zzz}", "'zzz' is no host:port, such as"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path: Path, override: str, told: str) -> None:
    off = "principles.safety.service="
    assert told in refusal(tmp_path, overrides=(off, override))


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    assert load(tmp_path, overrides=("learner.lr=1",)).learner.lr == 1.0


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        ("run: &a {z: *a}", "a value holds an alias of itself; write it out"),
        ("x: &a [1, [*a]]", "a value holds an alias of itself; write it out"),
        (
            "a: &a [x, x, x, x, x, x, x, x]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in pairwise("abcdefg")),
            "holds more than 100000 values, each alias written out",
        ),
    ],
)
def test_aliases_make_no_endless_or_huge_value(tmp_path: Path, overlay: str, told: str) -> None:
    said = refusal(tmp_path, overlay)
    assert told in said
    assert "1.yaml:" in said


def test_an_alias_may_stand_twice(tmp_path: Path) -> None:
    overlay = "learner: {lr: &x 0.5}\nsft: {data: [a.jsonl], lr: *x}"
    config = load(tmp_path, overlay)
    assert config.sft is not None
    assert config.learner.lr == config.sft.lr == 0.5


def test_secrets_inside_lists_are_masked(tmp_path: Path) -> None:
    options = "{api_keys: [sk-1, sk-2], ends: [{token: sk-3, url: u}], max_tokens: 5}"
    config = load(tmp_path, overrides=(f"principles.safety.options={options}",))
    shown = shareable(config)["principles"]["safety"]["options"]
    assert "sk-" not in str(shown)
    assert shown["ends"] == [{"token": "***", "url": "u"}]
    assert shown["max_tokens"] == 5


def test_a_character_that_yaml_has_no_place_for_is_one_sentence(tmp_path: Path) -> None:
    said = refusal(tmp_path, "run: {name: a\0b}")
    assert "1.yaml:1: is not YAML (unacceptable character #x0000" in said
    assert "\n" not in said
