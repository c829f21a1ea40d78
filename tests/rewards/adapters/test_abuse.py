"""The corpus of attacks, and proof that its runner can tell an attack that got through."""

from __future__ import annotations

import shutil

import pytest

from rewards.adapters.sandbox import has_namespaces
from tests.abuse.outcome import Outcome
from tests.abuse.sandbox import run
from tests.abuse.sandbox_attacks import ATTACKS

pytestmark = pytest.mark.process

WAIT_FOR_THE_DEADLINE = {
    *("busy_loop", "ignore_signals", "await_forever", "stop_self", "patch_time", "print_gigabyte"),
    *("become_another", "close_and_stay", "patch_builtins", "allocate_in_forks", "huge_number"),
}
QUICK = set(ATTACKS) - WAIT_FOR_THE_DEADLINE

needs_namespaces = pytest.mark.skipif(
    not has_namespaces(), reason="this kernel grants no user namespaces"
)


def breaches(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not outcome.is_contained]


@needs_namespaces
def test_attacks_that_end_by_themselves_are_contained() -> None:
    outcomes = run(QUICK, mode="namespaces")
    assert len(outcomes) >= 50
    assert breaches(outcomes) == []


@pytest.mark.slow
@needs_namespaces
def test_all_attacks_are_contained() -> None:
    outcomes = run(mode="namespaces")
    assert [outcome.kind for outcome in outcomes] == list(ATTACKS)
    assert breaches(outcomes) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_all_attacks_are_contained_by_bubblewrap() -> None:
    assert breaches(run(mode="bwrap")) == []


def test_limits_alone_hold_what_is_slow_greedy_or_broken() -> None:
    processes = {"fork_and_stay", "daemonize", "start_program_without_trace", "hold_the_pipe"}
    endings = {"leave_silently", "leave_politely", "crash", "allocate", "sleep_forever"}
    forgeries = {"garbage_everywhere", "forge_answers", "patch_json", "patch_worker"}
    assert breaches(run(processes | endings | forgeries, mode="limits")) == []


def test_the_runner_sees_an_attack_that_gets_through() -> None:
    (outcome,) = run({"overwrite_files"}, mode="limits")
    assert not outcome.is_contained
    assert "a file outside was changed" in outcome.told
    (outcome,) = run({"kill_everything"}, mode="limits")
    assert not outcome.is_contained, "a hostile attack is not tried where it would do harm"
    assert outcome.told.startswith("not tried")
