"""Where Ray puts an actor: labels, resources, and bundles that are whole on one node."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from cluster.placement import Placement
from cluster.remote import PENDING, kill, outcome, spawn, submit
from cluster.role_host import build_store_owner

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp") as temp:
        ray.init(
            address="local", num_cpus=4, resources={"fast": 2}, labels={"zone": "a"},
            include_dashboard=False, object_store_memory=100_000_000, _temp_dir=temp,
            log_to_driver=False, configure_logging=False,
        )  # fmt: skip
        try:
            yield
        finally:
            ray.shutdown()


def spawned(placement: Placement) -> Any:
    return spawn(f"placed-{secrets.token_hex(4)}", build_store_owner, {}, placement)


def is_up(handle: Any, timeout_s: float = DEADLINE_S) -> bool:
    return outcome(submit(handle, "start", {}), timeout_s) is True


def bundles(state: str) -> list[dict[str, Any]]:
    return [group for group in placement_group_table().values() if group["state"] == state]


def test_an_actor_goes_where_its_labels_and_resources_are(local_ray: None) -> None:
    here = spawned(Placement(labels={"zone": "in(a,b)"}, resources={"fast": 1.5}))
    elsewhere = spawned(Placement(labels={"zone": "!in(a,b)"}))
    too_much = spawned(Placement(resources={"fast": 1.0}))
    assert is_up(here)
    for waiting in (elsewhere, too_much):
        assert outcome(submit(waiting, "start", {}), 2.0) is PENDING
    kill(here)
    assert is_up(too_much), "there is room for it now"
    kill(too_much)
    kill(elsewhere)


def test_what_an_engine_of_several_gpus_takes_is_reserved_whole_and_freed_with_it(
    local_ray: None,
) -> None:
    """Cores stand for GPUs here."""
    whole = Placement(num_cpus=3, labels={"zone": "a"}, resources={"fast": 1.0}, is_bundle=True)
    first, second = spawned(whole), spawned(whole)
    assert is_up(first)
    (bundle,) = bundles("CREATED")
    assert bundle["strategy"] == "STRICT_PACK"
    assert bundle["bundles"] == {0: {"CPU": 3.0, "fast": 1.0}}
    assert outcome(submit(second, "start", {}), 2.0) is PENDING, "three cores are not free"
    kill(first)
    assert is_up(second)
    kill(second)
    deadline = time.monotonic() + DEADLINE_S
    while bundles("CREATED") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(bundles("REMOVED")) == 2
