import asyncio
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster import checks
from cluster.checks import (
    check_data,
    check_dtype,
    check_gpus,
    check_services,
    check_verifier,
    preflight,
    required_disk_bytes,
    score_samples,
)
from cluster.model_folder import read_model_folder
from cluster.resource_plan import main_memory_bytes, resource_plan
from safeladder.config import Config
from safeladder.errors import (
    ConfigError,
    DataError,
    EnvironmentUnfitError,
    SafeladderError,
    VerifierUnavailableError,
)
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

Changes = dict[str, dict[str, Any]]


class EqualsReference:
    """A verifier: 1 if the response is the reference; fails on request."""

    name, version = "tests:EqualsReference", "1"

    def __init__(self, *, principle: str, broken: bool = False) -> None:
        self._principle = principle
        self._broken = broken

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        return [self._verdict(request) for request in requests]

    def _verdict(self, request: ScoreRequest) -> Verdict:
        fields: dict[str, Any] = {
            "sample_id": request.sample_id,
            "principle": self._principle,
            "verifier": self.name,
            "verifier_version": self.version,
        }
        if self._broken:
            return Verdict(
                **fields, status=VerdictStatus.INVALID, cause=InvalidCause.ERROR, evidence="boom"
            )
        score = float(request.response == request.reference)
        return Verdict(**fields, status=VerdictStatus.OK, score=score)


class NeverReady(EqualsReference):
    """A client whose service never answers."""

    async def start(self) -> None:
        await asyncio.Event().wait()


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (rows, columns) in shapes.items():
        size = 4 * rows * columns
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    shapes = {"model.embed_tokens.weight": [10, 4]}
    shapes |= {f"model.layers.{i}.mlp.weight": [4, 4] for i in range(3)}
    write_safetensors(folder / "model.safetensors", shapes)
    return folder


def build(tmp_path: Path, **changes: Any) -> Config:
    data = tmp_path / "train.jsonl"
    if not data.exists():
        rows = [
            {"id": f"{route}{i}", "prompt": "q", "route": route, "reference": str(i)}
            for route in ("safety", "task")
            for i in range(4)
        ]
        data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    tree: dict[str, Any] = {
        "run": {"name": "demo", "steps": 3, "root": str(tmp_path / "runs")},
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "data": {"train": [str(data)]},
        "principles": {"exact": {"verifier": f"{__name__}:EqualsReference"}},
        "routes": {"safety": {"exact": 1.0}, "task": {"exact": 1.0}},
    }
    for dotted, value in changes.items():
        section, _, key = dotted.partition("__")
        tree.setdefault(section, {})[key] = value
    return Config.model_validate(tree)


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_a_processor_without_its_units_is_refused(
    tmp_path: Path, dtype: str
) -> None:
    config = build(tmp_path, model__dtype=dtype)
    with pytest.raises(
        EnvironmentUnfitError,
        match=rf"model\.dtype {dtype}: rollout, learner would run .* set model\.dtype to float32",
    ):
        check_dtype(config, {"avx2"})
    check_dtype(config, {"avx2", "avx512_bf16", "avx512_fp16"})
    check_dtype(build(tmp_path), {"avx2"})


def test_only_the_roles_without_a_gpu_are_named(tmp_path: Path) -> None:
    config = build(
        tmp_path, model__dtype="bfloat16", rollout__num_gpus=1, learner__num_gpus=1,
        reference__kl_coefficient=0.1,
    )  # fmt: skip
    with pytest.raises(
        EnvironmentUnfitError, match=r"bfloat16: reference would.*reference\.num_gpus"
    ):
        check_dtype(config, {"avx2"})


def test_gpus_of_a_cluster_elsewhere_are_not_looked_for_here(tmp_path: Path) -> None:
    check_gpus(build(tmp_path, rollout__num_gpus=8, placement__address="10.0.0.1:6379"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"routes__empty": {}}, r"routes\.empty names no principle"),
        (
            {"principles__exakt": {"verifier": f"{__name__}:EqualsReference"}},
            r"principles\.exakt is in no route, so it does nothing; did you mean exact\?",
        ),
        ({"data__train": []}, r"data\.train names no file"),
        ({"learner__train_last_layers": 4}, r"train_last_layers 4: the model has 3 layers"),
        ({"learner__micro_batch_tokens": 10}, r"learner\.micro_batch_tokens is 10, but one sample"),
        ({"placement__address": "head"}, r"placement\.address 'head' is no host:port"),
        ({"placement__address": "http://head:8265"}, r"is no host:port of a Ray head"),
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
        with pytest.raises(DataError, match=r"bad\.jsonl:[12]: column prompt"):
            preflight(build(tmp_path, **changes))
    good = tmp_path / "good.jsonl"
    good.write_text('{"prompt": "a", "response": "b"}\n')
    assert len(check_data(build(tmp_path, sft__data=[str(good)]))) == 8


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


def test_three_rows_are_scored_on_their_own_reference_over_all_routes(tmp_path: Path) -> None:
    config = build(tmp_path)
    scored = asyncio.run(score_samples(config, check_data(config)))
    assert [s.prompt_id for s in scored["exact"]] == ["safety0", "task0", "safety1"]
    assert [s.verdict.score for s in scored["exact"]] == [1.0, 1.0, 1.0]


def test_a_principle_without_one_valid_verdict_is_unavailable(tmp_path: Path) -> None:
    broken = {"verifier": f"{__name__}:EqualsReference", "options": {"broken": True}}
    config = build(tmp_path, principles__exact=broken)
    with pytest.raises(VerifierUnavailableError, match=r"exact: all sample rows are INVALID.*boom"):
        asyncio.run(score_samples(config, check_data(config)))


def test_a_disk_too_small_for_the_checkpoints_is_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "required_disk_bytes", lambda *_: 2**60)
    with pytest.raises(EnvironmentUnfitError, match="GiB are free on this disk"):
        preflight(build(tmp_path))


def test_training_few_layers_needs_less_disk_and_memory(tmp_path: Path, model: Path) -> None:
    whole, part = build(tmp_path), build(tmp_path, learner__train_last_layers=1)
    folder = read_model_folder(model)
    assert required_disk_bytes(whole, folder) == 3 * (4 * 88 + 12 * 88)
    assert required_disk_bytes(part, folder) == 3 * (4 * 88 + 12 * 16)
    assert main_memory_bytes(resource_plan(part, folder)) < main_memory_bytes(
        resource_plan(whole, folder)
    )


def test_the_plan_names_each_role_that_will_run_and_no_other(tmp_path: Path, model: Path) -> None:
    folder = read_model_folder(model)
    plan = resource_plan(build(tmp_path), folder)
    assert [line.role for line in plan] == [
        "rollout", "learner", "verifier exact", "driver, monitor, store",
    ]  # fmt: skip
    with_kl = resource_plan(build(tmp_path, reference__kl_coefficient=0.1), folder)
    assert "reference" in [line.role for line in with_kl]


def test_every_problem_is_one_of_the_errors_with_an_exit_code() -> None:
    for error in (ConfigError, DataError, EnvironmentUnfitError, VerifierUnavailableError):
        assert issubclass(error, SafeladderError)
        assert error.exit_code in (2, 3, 4)
