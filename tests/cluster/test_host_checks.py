"""Whether this machine and this model fit a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import host_checks
from cluster.checks import preflight
from cluster.host_checks import (
    check_cores,
    check_dtype,
    check_gpus,
    check_memory,
    check_transport,
    required_disk_bytes,
)
from cluster.model_checks import check_chat_template
from cluster.model_folder import read_model_folder
from cluster.resource_plan import main_memory_bytes, resource_plan
from safeladder.errors import ConfigError, EnvironmentUnfitError

from .checked_setup import build, save_headers


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_headers(tmp_path / "model")


def test_half_precision_on_a_processor_without_its_units_is_refused(tmp_path: Path) -> None:
    config = build(tmp_path, model__dtype="bfloat16")
    with pytest.raises(
        EnvironmentUnfitError,
        match=r"model\.dtype bfloat16: rollout, learner would run .* set model\.dtype to float32",
    ):
        check_dtype(config, {"avx2"})
    check_dtype(config, {"avx2", "avx512_bf16"})
    check_dtype(build(tmp_path), {"avx2"})


def test_cores_are_refused_only_if_the_machine_has_none_of_them(tmp_path: Path) -> None:
    both = build(tmp_path, placement__rollout_cores=[0], placement__learner_cores=[1])
    check_cores(both, 1)
    wrong = build(tmp_path, placement__rollout_cores=[2, 3])
    with pytest.raises(ConfigError, match=r"name \[2, 3\], but this machine has the cores 0 to 1"):
        check_cores(wrong, 2)
    elsewhere = build(tmp_path, placement__rollout_cores=[2, 3], placement__address="10.0.0.1:6379")
    check_cores(elsewhere, 2)


def test_a_run_that_needs_more_memory_than_the_machine_has_is_refused(
    tmp_path: Path, model: Path
) -> None:
    config, folder = build(tmp_path), read_model_folder(model)
    check_memory(config, folder, 2**40)
    with pytest.raises(EnvironmentUnfitError, match=r"GiB of main memory, .* has 1\.0 GiB; lower"):
        check_memory(config, folder, 2**30)
    elsewhere = build(tmp_path, placement__address="10.0.0.1:6379")
    check_memory(elsewhere, folder, 2**30)


def test_a_model_with_stretched_positions_has_no_known_limit(model: Path) -> None:
    scaled = {"rope_type": "yarn", "factor": 4.0}
    for key, rope, known in (
        ("rope_scaling", scaled, None),
        ("rope_parameters", scaled, None),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}, 2048),
    ):
        config = {"model_type": "llama", "max_position_embeddings": 2048, key: rope}
        (model / "config.json").write_text(json.dumps(config))
        assert read_model_folder(model).max_positions == known


def test_a_template_may_use_what_the_model_library_adds_to_jinja() -> None:
    check_chat_template(
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}"
        "{% generation %}{{ m }}{% endgeneration %}{% endfor %}"
    )


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


def test_a_disk_too_small_for_the_checkpoints_is_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_checks, "required_disk_bytes", lambda *_: 2**60)
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


def test_weights_from_gpu_to_gpu_need_a_gpu_at_both_ends(tmp_path: Path) -> None:
    config = build(tmp_path, weights__transport="nccl", learner__num_gpus=1)
    with pytest.raises(
        ConfigError, match=r"^weights.transport nccl needs GPUs: set rollout\.num_gpus"
    ):
        check_transport(config)
    check_transport(
        build(tmp_path, weights__transport="nccl", learner__num_gpus=1, rollout__num_gpus=1)
    )
    check_transport(build(tmp_path))


@pytest.mark.parametrize(
    "more",
    [
        {"learner__num_gpus": 1, "rollout__num_gpus": 1},
        {"learner__num_gpus": 0.5, "rollout__num_gpus": 0.5, "learner__ranks": 2},
        {"learner__num_gpus": 0.5, "rollout__num_gpus": 0.2, "rollout__actors": 2},
    ],
)
def test_ipc_needs_one_rank_and_one_engine_on_one_gpu(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"that share a GPU"):
        check_transport(build(tmp_path, weights__transport="ipc", **more))


def test_ipc_between_two_halves_of_a_gpu_is_accepted(tmp_path: Path) -> None:
    halves = {"learner__num_gpus": 0.5, "rollout__num_gpus": 0.5}
    check_transport(build(tmp_path, weights__transport="ipc", **halves))


def test_a_machine_without_gpus_refuses_a_transport_between_gpus(tmp_path: Path) -> None:
    gpus = {"learner__num_gpus": 1, "rollout__num_gpus": 1}
    config = build(tmp_path, weights__transport="nccl", **gpus)
    check_transport(config)
    with pytest.raises(EnvironmentUnfitError, match="no GPU that PyTorch can use"):
        check_gpus(config)


def test_deltas_and_the_transformers_engine_stay_with_the_object_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights.delta has no use with weights.transport: nccl"):
        build(tmp_path, weights__transport="nccl", weights__delta=True)
    with pytest.raises(ValueError, match=r"nccl needs rollout.engine: vllm"):
        build(tmp_path, weights__transport="nccl", rollout__engine="transformers")
