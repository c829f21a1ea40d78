"""What is trained is as long as what was sampled: faults, retries and the staleness bound must not
prefer short answers. A model of an engine makes a prompt's answers equally long in every attempt,
and an engine dies the likelier the longer a lease takes, so a loss of long groups is for good."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import ks_2samp

from cluster.coordinator import Coordinator
from cluster.protocol import Event, GenerationFailed, GroupGenerated
from cluster.simulated_roles import Faults
from cluster.simulator import SimulationReport, simulate
from safeladder.records import GenerationFailure
from tests.cluster.coordinator_play import Prompts, make_config

BOUND = 4
LAG = 2
EVERYTHING = Faults(**{name: 0.05 for name in Faults.__slots__} | {"driver_dies": 0.003})


def long_run(seed: int) -> SimulationReport:
    """600 groups of 4 at bound 4 under all faults; one engine is two versions behind."""
    config = make_config(
        run={"steps": 150},
        rollout={"actors": 4, "group_size": 4, "max_concurrent_groups": 4},
        reference={"kl_coefficient": 0.1},
        checkpoint={"every_steps": 3},
        schedule={"max_staleness": BOUND, "groups_per_step": 4},
    )
    report = simulate(config, Prompts(), EVERYTHING, seed, lag=LAG)
    assert (report.finished, report.violations) == (True, ())
    assert report.num_driver_deaths > 0
    return report


def chance_of_no_bias(report: SimulationReport) -> float:
    """The p-value of the two-sample test of Kolmogorov and Smirnov."""
    return float(ks_2samp(report.sampled_lengths, report.trained_lengths).pvalue)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_trained_lengths_are_the_sampled_ones_under_faults(seed: int) -> None:
    report = long_run(seed)
    assert sum(report.dropped.values()) > 60, "without drops there is nothing to be biased"
    assert chance_of_no_bias(report) > 0.05
    assert LAG <= max(report.trained_by_staleness) <= BOUND


def test_a_policy_that_drops_the_longest_groups_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Coordinator.handle

    def impatient(self: Coordinator, event: Event) -> Any:
        if isinstance(event, GroupGenerated) and max(event.header.lengths) > 80:
            header = event.header
            event = GenerationFailed(
                GenerationFailure(
                    key=header.key,
                    attempt=header.attempt,
                    fence=header.fence,
                    engine=header.engine,
                    cause="engine_error",
                    detail="too long to wait for",
                    retryable=False,
                )
            )
        return handle(self, event)

    monkeypatch.setattr(Coordinator, "handle", impatient)
    assert chance_of_no_bias(long_run(0)) < 1e-4


@pytest.mark.parametrize("bound", [0, 1, 2, 4])
def test_an_engine_that_lags_two_versions_never_raises_staleness_above_its_bound(
    bound: int,
) -> None:
    config = make_config(
        run={"steps": 20},
        rollout={"actors": 2, "max_concurrent_groups": 4},
        schedule={"max_staleness": bound},
    )
    report = simulate(config, Prompts(), Faults(), 5, lag=LAG)
    assert (report.finished, report.violations) == (True, ())
    assert max(report.trained_by_staleness) <= bound
    if bound >= LAG:
        assert max(report.trained_by_staleness) >= LAG, "the engine did not lag"
