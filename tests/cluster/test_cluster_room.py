"""Whether a cluster has room for a run: nodes are data here, no Ray is started."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.cluster_room import accelerator_type, check_fit, check_room, demands_of, matches
from cluster.remote import Node
from safeladder.config import Config
from safeladder.errors import ConfigError, EnvironmentUnfitError

from .coordinator_play import make_config


def node(kind: str = "", gpus: int = 0, cpus: int = 64, **labels: str) -> Node:
    accelerator = {f"accelerator_type:{kind}": 1.0, "GPU": float(gpus)} if kind else {}
    return Node({"CPU": float(cpus), **accelerator}, labels)


def config(**fleets: dict[str, Any]) -> Config:
    return make_config(fleets=fleets, learner={"num_gpus": 0})


H100 = {"actors": 3, "num_gpus": 4, "accelerator_type": "H100"}


def test_engines_are_placed_whole_on_one_node() -> None:
    """Three engines of four GPUs: two nodes of six GPUs hold one each, one of eight holds two."""
    wanted = demands_of(config(h100=H100))
    check_fit(wanted, [node("H100", 8), node("H100", 6)])
    with pytest.raises(
        EnvironmentUnfitError,
        match=r"fleets\.h100: the cluster has room for 2 of 3 actors of 4 GPU, 1 CPU \(H100\); "
        r"lower fleets\.h100\.actors, or add nodes",
    ):
        check_fit(wanted, [node("H100", 6), node("H100", 6)])


def test_an_accelerator_that_no_node_has_is_named_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError,
        match=r"fleets\.h100\.accelerator_type: no node of the cluster has 'H100'; it has A100, L4",
    ):
        check_fit(demands_of(config(h100=H100)), [node("L4", 8), node("A100", 8)])


def test_fleets_share_the_nodes_and_the_learner_needs_its_own() -> None:
    two = {"any": {"actors": 2, "num_gpus": 1}, "h100": {**H100, "actors": 1}}
    both = make_config(fleets=two, learner={"num_gpus": 1})
    check_fit(demands_of(both), [node("H100", 7)])
    with pytest.raises(EnvironmentUnfitError, match=r"^learner: .* lower learner\.ranks"):
        check_fit(demands_of(both), [node("H100", 6)])


def test_a_label_selects_the_node() -> None:
    wanted = demands_of(config(near={"actors": 1, "labels": {"zone": "a"}}))
    check_fit(wanted, [node(zone="b"), node(zone="a")])
    with pytest.raises(EnvironmentUnfitError, match=r"room for 0 of 1 actors of 1 CPU \(zone=a\)"):
        check_fit(wanted, [node(zone="b")])


def test_custom_resources_run_out() -> None:
    wanted = demands_of(config(fast={"actors": 3, "resources": {"fast": 1.0}}))
    with pytest.raises(EnvironmentUnfitError, match=r"2 of 3 actors of 1 CPU, 1 fast \(1 fast\)"):
        check_fit(wanted, [Node({"CPU": 9.0, "fast": 2.0}, {})])


def test_engines_that_may_come_later_need_no_room_now() -> None:
    later = {"actors": 0, "max_actors": 8, "num_gpus": 8, "accelerator_type": "H100"}
    check_fit(demands_of(config(spot=later)), [node()])


def test_this_machine_has_no_such_gpu() -> None:
    with pytest.raises(ConfigError, match=r"no node of the cluster has 'H100'"):
        check_room(config(h100=H100))
    check_room(make_config())


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({"zone": "a"}, {"zone": "a"}, True),
        ({"zone": "!a"}, {"zone": "a"}, False),
        ({"zone": "!a"}, {}, True),
        ({"zone": "in(a, b)"}, {"zone": "b"}, True),
        ({"zone": "!in(a,b)"}, {"zone": "b"}, False),
        ({"zone": "a", "disk": "ssd"}, {"zone": "a"}, False),
    ],
)
def test_selectors_mean_what_they_mean_to_ray(
    selector: dict[str, str], labels: dict[str, str], expected: bool
) -> None:
    assert matches(selector, labels) is expected


@pytest.mark.parametrize(
    ("device", "kind"),
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA L40S", "L40S"), ("Tesla V100-SXM2-16GB", "V100")],
)
def test_a_gpu_is_named_as_ray_names_it(device: str, kind: str) -> None:
    assert accelerator_type(device) == kind
