"""``fleets`` of a config: what they inherit, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from safeladder.config import Config
from tests.cluster.coordinator_play import make_config


def config(rollout: dict[str, Any] | None = None, **fleets: dict[str, Any]) -> Config:
    return make_config(fleets=fleets, rollout=rollout or {})


def test_without_fleets_there_is_one_of_equal_engines() -> None:
    fleets = make_config(rollout={"actors": 3}).engine_fleets
    assert {name: (f.actors, f.most_actors) for name, f in fleets.items()} == {"rollout": (3, 3)}


def test_a_fleet_takes_from_rollout_what_it_does_not_say() -> None:
    fleets = config(
        {"num_cpus": 2.0, "vllm": {"max_num_seqs": 32}},
        big={"actors": 2, "num_gpus": 4, "vllm": {"tensor_parallel_size": 4}},
        small={"actors": 0, "max_actors": 5, "vllm": {"max_num_seqs": 8}, "num_cpus": 1},
    ).engine_fleets
    big, small = fleets["rollout-big"], fleets["rollout-small"]
    assert (big.rollout.num_cpus, big.rollout.num_gpus) == (2.0, 4.0)
    assert (big.rollout.vllm.max_num_seqs, big.rollout.vllm.tensor_parallel_size) == (32, 4)
    assert (small.rollout.num_cpus, small.rollout.vllm.max_num_seqs) == (1.0, 8)
    assert (small.actors, small.most_actors) == (0, 5)


@pytest.mark.parametrize(
    ("rollout", "fleet", "why"),
    [
        ({"actors": 2}, {}, "rollout.actors and fleets both say how many"),
        ({}, {"actors": 3, "max_actors": 2}, "max_actors is 2, below actors: 3"),
        ({}, {"actors": 0}, "at least one engine"),
        ({}, {"vllm": {"max_seqs": 2}}, r"fleets\.a\.vllm\.max_seqs: Extra inputs"),
        ({}, {"vllm": {"max_num_seqs": 0}}, r"fleets\.a\.vllm\.max_num_seqs"),
        ({}, {"num_gpus": 2, "vllm": {"tensor_parallel_size": 4}}, r"fleets\.a: .* not num_gpus"),
        ({}, {"accelerator_type": "H100"}, r"fleets\.a: accelerator_type without num_gpus"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    rollout: dict[str, Any], fleet: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        config(rollout, a=fleet)


def test_a_deterministic_run_has_one_engine_in_all_fleets() -> None:
    sections: dict[str, Any] = {
        "run": {"deterministic": True},
        "rollout": {"engine": "transformers"},
        "schedule": {"max_staleness": 0},
    }
    make_config(**sections, fleets={"a": {}})
    with pytest.raises(ValidationError, match=r"run\.deterministic needs"):
        make_config(**sections, fleets={"a": {}, "b": {}})
