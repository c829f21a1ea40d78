import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from cluster import checks
from cluster.checks import (
    check_evaluation,
    check_services,
    check_verifier,
    preflight,
    score_samples,
)
from cluster.data_checks import check_data
from cluster.model_folder import read_model_folder
from safeladder.config import Config
from safeladder.errors import (
    ConfigError,
    DataError,
    EnvironmentUnfitError,
    SafeladderError,
    VerifierUnavailableError,
)

from .checked_setup import JUDGE, EqualsReference, build, save_headers


class NeverReady(EqualsReference):
    """A client whose service never answers."""

    async def start(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_headers(tmp_path / "model")


def write_header(model: Path, header: bytes) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def write_index(model: Path, weight_map: object) -> None:
    index = {"weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_complete_setup_passes_and_starts_nothing(tmp_path: Path, model: Path) -> None:
    preflight(build(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_a_model_is_counted_by_layer_from_its_headers_alone(model: Path) -> None:
    folder = read_model_folder(model)
    assert folder.num_parameters == 40 + 3 * 16
    assert folder.parameters_by_layer == (16, 16, 16)
    assert folder.num_trainable(2) == 32
    assert folder.num_trainable(None) == 88


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda m: (m / "config.json").unlink(), r"holds no config\.json; set model\.path"),
        (lambda m: (m / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda m: (m / "tokenizer.json").unlink(), r"holds no tokenizer"),
        (lambda m: (m / "model.safetensors").unlink(), r"holds no weights .* convert the model"),
        (lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), r"only pickled"),
        (lambda m: (m / "model.safetensors").write_bytes(b"abc"), r"cut off or damaged"),
        (
            lambda m: (m / "model.safetensors").write_bytes(
                (m / "model.safetensors").read_bytes()[:-4]
            ),
            r"model\.safetensors: the file is cut off or damaged; copy the model again",
        ),
        (
            lambda m: (m / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-2.safetensors"}}'
            ),
            r"the weight file model-2\.safetensors is missing",
        ),
        (lambda m: write_index(m, ["a"]), "index.json names no weight files"),
        (lambda m: write_index(m, {"a": 5}), "index.json names no weight files"),
        (lambda m: write_header(m, b"[" * 50_000), "cut off or damaged"),
        (lambda m: write_header(m, b'{"a": 5}'), "cut off or damaged"),
        (
            lambda m: write_header(m, b'{"a": {"shape": ["x"], "data_offsets": [0, 0]}}'),
            "cut off or damaged",
        ),
        (
            lambda m: write_header(m, b'{"a": {"shape": [1], "data_offsets": [0]}}'),
            "cut off or damaged",
        ),
        (lambda m: write_header(m, b"{}"), "the weight files hold no tensor"),
        (lambda m: (m / "config.json").write_text("[" * 50_000), r"config\.json cannot be read"),
        (
            lambda m: (m / "config.json").write_text('{"model_type": "lama"}'),
            r"model_type in config\.json, 'lama', is none that .*; did you mean 'llama'\?",
        ),
        (
            lambda m: (m / "config.json").write_text(
                '{"model_type": "llava", "vision_config": {}}'
            ),
            r"model_type 'llava' are not known here, those of internvl and qwen2_5_vl are",
        ),
    ],
)
def test_an_incomplete_model_is_refused_with_the_file_and_the_way_out(
    tmp_path: Path, model: Path, damage: Any, told: str
) -> None:
    damage(model)
    with pytest.raises(EnvironmentUnfitError, match=told) as caught:
        preflight(build(tmp_path))
    assert caught.value.exit_code == 3


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentUnfitError, match=r"model/?: there is no such folder; set model\.path"
    ):
        preflight(build(tmp_path))


@pytest.mark.parametrize(
    ("name", "why"), [("a" * 300, "file name too long"), ("a\0b", "null byte")]
)
def test_a_model_path_that_cannot_be_looked_at_is_named(
    tmp_path: Path, name: str, why: str
) -> None:
    with pytest.raises(EnvironmentUnfitError, match=rf"cannot be read \(.*{why}.*model\.path"):
        read_model_folder(tmp_path / name)


def test_a_data_path_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(.*null byte\); check the path"):
        check_data(build(tmp_path, data__train=["a\0b"]))


def test_a_default_principle_of_the_evaluation_may_be_absent(tmp_path: Path) -> None:
    check_evaluation(build(tmp_path, data__held_out=["train.jsonl"]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"routes__empty": {}}, r"routes\.empty names no principle"),
        (
            {"principles__exakt": {"verifier": JUDGE}},
            r"principles\.exakt is in no route, so it does nothing; did you mean exact\?",
        ),
        ({"data__train": []}, r"data\.train names no file"),
        ({"learner__train_last_layers": 4}, r"train_last_layers 4: the model has 3 layers"),
        ({"learner__micro_batch_tokens": 10}, r"learner\.micro_batch_tokens is 10, but one sample"),
        ({"placement__address": "head"}, r"placement\.address 'head' is no host:port"),
        ({"placement__address": "http://head:8265"}, r"is no host:port of a Ray head"),
        ({"placement__address": "head:99999"}, r"is no host:port of a Ray head"),
        (
            {"placement__rollout_cores": [9999]},
            r"name \[9999\], but this machine has the cores 0 to",
        ),
        (
            {"model__chat_template": "{% for x %}"},
            r"chat_template: line 1 is no Jinja: .*; correct",
        ),
        (
            {"rollout__max_new_tokens": 3000, "learner__micro_batch_tokens": 9999},
            r"max_new_tokens is 4024, but the model has 2048 positions; lower one",
        ),
        (
            {"data__held_out": ["train.jsonl"], "evaluation__safety_principle": "safty"},
            r"evaluation\.safety_principle names 'safty', which is not in `principles` \(exact\)",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_refused_before_the_start(
    tmp_path: Path, model: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        preflight(build(tmp_path, **changes))


def test_every_data_file_is_read_before_the_start(tmp_path: Path, model: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "route": "task"}\n{"question": "b", "route": "task"}\n')
    for changes in ({"data__held_out": [str(bad)]}, {"sft__data": [str(bad)]}):
        with pytest.raises(DataError, match=r"bad\.jsonl:[12]: column (prompt|response)"):
            preflight(build(tmp_path, **changes))
    good = tmp_path / "good.jsonl"
    good.write_text('{"prompt": "a", "response": "b"}\n')
    assert len(check_data(build(tmp_path, sft__data=[str(good)]))) == 8
    with pytest.raises(ConfigError, match=r"sft\.data names no file"):
        check_data(build(tmp_path, sft__data=[]))


@pytest.mark.parametrize("key", ["data__train", "data__held_out"])
def test_rows_with_images_are_refused_by_a_text_model(
    tmp_path: Path, model: Path, key: str
) -> None:
    path = tmp_path / "seen.jsonl"
    row = {"prompt": "a", "route": "task"}
    rows = [row, {**row, "prompt": "b", "images": ["cat.png"]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"seen\.jsonl:2: column images: the model .* reads text"):
        check_data(build(tmp_path, **{key: [str(path)]}))


def test_a_verifier_that_does_not_import_is_refused_at_start(tmp_path: Path, model: Path) -> None:
    principles = {"exact": {"verifier": "rewards.nowhere:Verifier"}}
    with pytest.raises(ConfigError, match=r"principles\.exact\.verifier: no module") as caught:
        preflight(build(tmp_path, principles__exact=principles["exact"]))
    assert caught.value.exit_code == 2


def test_the_verifier_of_a_service_to_be_spawned_is_imported_too(tmp_path: Path) -> None:
    config = build(
        tmp_path, principles__exact={"verifier": "no.such:V", "service": {"spawn": True}}
    )
    with pytest.raises(ConfigError, match=r"principles\.exact\.verifier: no module"):
        check_verifier("exact", config.principles["exact"])


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    service = {"address": "h:1", "token_file": str(tmp_path / "token")}
    config = build(tmp_path, principles__exact={"service": service})
    with pytest.raises(ConfigError, match=r"service\.token_file: there is no file .*token"):
        check_verifier("exact", config.principles["exact"])


def test_a_service_that_accepts_and_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "local_or_remote", lambda p, _: NeverReady(principle=p))
    monkeypatch.setattr(checks, "REACH_DEADLINE_S", 0.05)
    config = build(tmp_path, principles__exact={"service": {"address": "host:1"}})
    with pytest.raises(VerifierUnavailableError, match="host:1 did not answer within") as caught:
        asyncio.run(check_services(config))
    assert caught.value.exit_code == 4


@pytest.mark.process
def test_a_reward_function_that_does_not_import_is_refused_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "rf.py").write_text("import sys\ndef reward(**_): ...\nsys.exit('not here')")
    options = {"function": f"{tmp_path}/rf.py:reward"}
    config = build(
        tmp_path,
        principles__exact={"verifier": "rewards.adapters.verl:VerlReward", "options": options},
    )
    with pytest.raises(ConfigError, match=r"exact\.options\.function: .*SystemExit: not here"):
        asyncio.run(check_services(config))


def test_three_rows_are_scored_on_their_own_reference_over_all_routes(tmp_path: Path) -> None:
    config = build(tmp_path)
    scored = asyncio.run(score_samples(config, check_data(config)))
    assert [s.prompt_id for s in scored["exact"]] == ["safety0", "task0", "safety1"]
    assert [s.verdict.score for s in scored["exact"]] == [1.0, 1.0, 1.0]


def test_a_principle_without_one_valid_verdict_is_unavailable(tmp_path: Path) -> None:
    broken = {"verifier": JUDGE, "options": {"broken": True}}
    config = build(tmp_path, principles__exact=broken)
    with pytest.raises(VerifierUnavailableError, match=r"exact: all sample rows are INVALID.*boom"):
        asyncio.run(score_samples(config, check_data(config)))


def with_canaries(tmp_path: Path, expect: dict[str, float]) -> Config:
    path = tmp_path / "canaries.jsonl"
    row = {"prompt": "q", "response": "7", "reference": "7", "route": "task", "expect": expect}
    path.write_text(json.dumps(row) + "\n")
    return build(tmp_path, principles__exact={"verifier": JUDGE, "canaries": str(path)})


def test_canaries_that_cannot_be_read_are_an_error_of_the_config(
    tmp_path: Path, model: Path
) -> None:
    config = build(tmp_path, principles__exact={"verifier": JUDGE, "canaries": "/nope"})
    with pytest.raises(DataError, match=r"principles\.exact\.canaries: /nope") as caught:
        preflight(config)
    assert caught.value.exit_code == 2


def test_a_verifier_that_is_wrong_on_its_canaries_is_not_ready_to_train(tmp_path: Path) -> None:
    right = with_canaries(tmp_path, {"min": 0.9})
    assert len(asyncio.run(score_samples(right, check_data(right)))["exact"]) == 3
    wrong = with_canaries(tmp_path, {"max": 0.1})
    with pytest.raises(
        VerifierUnavailableError, match=r"exact\.canaries: wrong on 1 of 1"
    ) as caught:
        asyncio.run(score_samples(wrong, check_data(wrong)))
    assert caught.value.exit_code == 4


def test_every_problem_is_one_of_the_errors_with_an_exit_code() -> None:
    for error in (ConfigError, DataError, EnvironmentUnfitError, VerifierUnavailableError):
        assert issubclass(error, SafeladderError)
        assert error.exit_code in (2, 3, 4)


def probed(tmp_path: Path, rows: str) -> Config:
    file = tmp_path / "probe.jsonl"
    file.write_text(rows)
    tree = build(tmp_path).model_dump(mode="json", exclude_unset=True)
    tree["principles"]["asked"] = {"verifier": JUDGE}
    tree["probes"] = {"sets": {"held": {"data": [str(file)], "principle": "asked"}}}
    return Config.model_validate(tree)


def test_a_principle_that_only_a_probe_asks_is_of_use(tmp_path: Path, model: Path) -> None:
    preflight(probed(tmp_path, '{"id": "1", "prompt": "?", "route": "task"}\n'))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("", "the file is empty"),
        ('{"id": "1", "prompt": "?", "route": "x"}\n', r"probe\.jsonl:1: .*route"),
    ],
)
def test_the_rows_of_a_probe_are_read_before_the_start(
    tmp_path: Path, model: Path, rows: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        preflight(probed(tmp_path, rows))
