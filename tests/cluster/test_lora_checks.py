"""What is known of adapters from the headers of a model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.model_checks import check_adapters
from cluster.model_folder import read_model_folder
from cluster.resource_plan import trained_parameters
from safeladder.errors import ConfigError
from tests.tiny_model import save_tiny_model

from .checked_setup import build


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def adapted(tmp_path: Path, model: Path, last: int | None = None, **lora: Any) -> int:
    config = build(tmp_path, learner__lora=lora, learner__train_last_layers=last)
    folder = read_model_folder(model)
    check_adapters(config, folder)
    return trained_parameters(config, folder)


def test_adapters_are_counted_by_layer_and_target(tmp_path: Path, model: Path) -> None:
    # q_proj is [64, 64], down_proj [64, 96], three layers of them
    assert adapted(tmp_path, model, rank=2, target=["q_proj"]) == 3 * 2 * 128
    assert adapted(tmp_path, model, last=1, rank=2, target=["q_proj", "down_proj"]) == 2 * 288
    # q, o: 128; k, v: 64 + 32; gate, up, down: 160
    assert adapted(tmp_path, model, rank=1) == 3 * (2 * 128 + 2 * 96 + 3 * 160)


def test_a_target_that_matches_no_layer_is_named_before_anything_is_loaded(
    tmp_path: Path, model: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'q_prj' is no linear .* did you mean q_proj\?"):
        adapted(tmp_path, model, target=["q_prj"])
    with pytest.raises(ConfigError, match="'lm_head' is no linear layer of the model's decoder"):
        adapted(tmp_path, model, target=["lm_head"])


def test_a_rank_above_that_of_every_layer_is_refused(tmp_path: Path, model: Path) -> None:
    adapted(tmp_path, model, rank=64)
    with pytest.raises(ConfigError, match=r"learner\.lora\.rank 65: .* a rank above 64"):
        adapted(tmp_path, model, rank=65)
