"""Simulated runs of the real coordinator, where the right answer can be worked out."""

import gc
from dataclasses import replace
from typing import Any

import pytest

from cluster.coordinator import Coordinator
from cluster.ledger import Ledger
from cluster.length_distribution import LogNormalLengths, MeasuredLengths
from cluster.modelled_engine import DecodeCurve
from cluster.performance import NumberedPrompts, simulate_performance
from cluster.performance_report import CollectorClock, PerformanceReport
from cluster.run_model import EngineModel, FaultModel, LatencyModel, LearnerModel, RunModel
from safeladder.config import Config
from safeladder.errors import SafeladderError
from tests.cluster.coordinator_play import make_config

TOKENS = 100
GROUPS = 16
"""Of a step."""
SIZE = 4


def config_of(max_staleness: int, **sections: dict[str, Any]) -> Config:
    return make_config(
        run={"steps": 10**6},
        rollout={"group_size": SIZE, "max_concurrent_groups": 8, "group_deadline_s": 1e6},
        schedule={"groups_per_step": GROUPS, "max_staleness": max_staleness},
        **sections,
    )


def model_of(train_s: float, **changes: Any) -> RunModel:
    """Two engines that give 10 ms to each token of a sequence, up to 32 sequences: a step is
    generated in 1 s. Verdicts take a millisecond."""
    tokens = GROUPS * SIZE * TOKENS
    engine = EngineModel(
        name="e",
        count=2,
        curve=DecodeCurve(((1, 0.01),)),
        max_sequences=32,
        kv_tokens=10**6,
    )
    model = RunModel(
        engines=(engine,),
        lengths=MeasuredLengths([TOKENS]),
        learner=LearnerModel(gpus=1, seconds_per_token=train_s / tokens),
        verifiers=LatencyModel(actors=4, calls_per_actor=16, median_s=0.001, sigma=0.01),
    )
    return replace(model, **changes)


def run(config: Config, model: RunModel, steps: int = 20, **options: Any) -> PerformanceReport:
    coordinator = Coordinator(config, NumberedPrompts("safety"), fence=1)
    return simulate_performance(config, model, coordinator, steps=steps, **options)


def test_bound_0_takes_the_sum_of_both_phases() -> None:
    report = run(config_of(0), model_of(train_s=3.0))
    assert report.step_s == pytest.approx(1.0 + 3.0, rel=0.02)
    assert report.training_bubble == pytest.approx(1 / 4, abs=0.02)
    assert report.generation_bubble == pytest.approx(3 / 4, abs=0.02)
    assert report.staleness_max == 0


@pytest.mark.parametrize("train_s", [0.3, 3.0])
def test_asynchronous_training_takes_the_longer_phase(train_s: float) -> None:
    report = run(config_of(2), model_of(train_s))
    assert report.step_s == pytest.approx(max(1.0, train_s), rel=0.03)
    assert report.training_s == pytest.approx(train_s, rel=0.01)
    assert report.tokens_per_step == GROUPS * SIZE * TOKENS


def test_a_pause_for_weights_costs_the_engines_its_length_in_each_step() -> None:
    model = model_of(0.3)
    paused = replace(model.engines[0], load_pause_s=0.5)
    report = run(config_of(4), replace(model, engines=(paused,)))
    assert report.step_s == pytest.approx(1.5, rel=0.05)


def test_a_slow_link_makes_tokens_older_but_no_step_longer() -> None:
    model = replace(model_of(0.8), weight_bytes=1e9)
    ages = {}
    for link in (1e12, 1e9):
        engine = replace(model.engines[0], link_bytes_per_s=link)
        report = run(config_of(4), replace(model, engines=(engine,)))
        assert report.step_s == pytest.approx(1.0, rel=0.05)
        ages[link] = report.staleness_mean
    assert ages[1e9] > ages[1e12]


def test_publication_is_the_learners_work() -> None:
    model = model_of(2.0)
    learner = replace(model.learner, publish_s=0.5)
    report = run(config_of(2), replace(model, learner=learner))
    assert report.step_s == pytest.approx(2.5, rel=0.02)


def test_a_fleet_with_a_slower_engine_is_as_fast_as_its_engines_together() -> None:
    model = model_of(0.1)
    slow = replace(model.engines[0], name="slow", count=1, curve=DecodeCurve(((1, 0.02),)))
    fast = replace(model.engines[0], name="fast", count=1)
    report = run(config_of(6), replace(model, engines=(fast, slow)), steps=40)
    # 32 sequences at 100 and at 50 tokens a second each
    assert report.step_s == pytest.approx(GROUPS * SIZE * TOKENS / (3200 + 1600), rel=0.1)


def test_slow_verifiers_bound_the_step_and_are_counted() -> None:
    model = model_of(0.1)
    slow = LatencyModel(actors=1, calls_per_actor=4, median_s=1.0, sigma=0.01)
    report = run(config_of(2), replace(model, verifiers=slow))
    assert report.step_s == pytest.approx(GROUPS / 4, rel=0.05)
    assert report.peak_calls == 4


def test_dead_engines_cost_what_they_held_and_nothing_is_lost() -> None:
    faults = FaultModel(engine_mtbf_s=20.0, restart_s=2.0, lost_call_share=0.02)
    report = run(config_of(4), model_of(0.5, faults=faults), steps=60)
    assert report.num_lost > 0
    assert report.num_trained == 60 * GROUPS
    assert set(report.dropped) <= {"stale", "failed"}
    assert 1.0 < report.step_s < 2.0


def test_a_ledger_takes_every_transition() -> None:
    config = config_of(2)
    with Ledger.open(None, config.run.name) as ledger:
        report = run(config, model_of(0.5), steps=5, ledger=ledger)
        assert not ledger.audit(groups_per_step=GROUPS, max_staleness=2)
        trained = sum(len(keys) for keys in ledger.trained_groups().values())
    assert trained == (5 + 3) * GROUPS
    assert report.num_trained == 5 * GROUPS


def test_a_reference_is_waited_for_and_must_be_modelled() -> None:
    config = config_of(2, reference={"always": True})
    slow = LatencyModel(actors=1, calls_per_actor=1, median_s=0.5, sigma=0.01)
    report = run(config, model_of(0.1, references=slow))
    assert report.step_s == pytest.approx(GROUPS * 0.5, rel=0.05)
    with pytest.raises(SafeladderError, match="has a reference"):
        run(config, model_of(0.1))


def test_equal_seeds_give_equal_runs() -> None:
    model = model_of(0.5, lengths=LogNormalLengths(mean=TOKENS, cap=1000, sigma=1.0))
    first, again, other = (run(config_of(2), model, seed=seed) for seed in (3, 3, 4))
    assert (first.step_s, first.num_events) == (again.step_s, again.num_events)
    assert first.step_s != other.step_s


def test_generation_runs_no_further_ahead_than_the_learner_needs() -> None:
    """Engines three times as fast as the learner: with all that admission allows, tokens would be
    as old as they may be."""
    report = run(config_of(8), model_of(3.0), steps=40)
    assert report.training_bubble < 0.01
    assert report.staleness_mean < 4
    assert report.dropped == {}


def test_stragglers_move_and_their_groups_are_trained_as_long_as_they_were_drawn() -> None:
    """Engines of one speed by their profiles, though one has more to do than it can bear."""
    model = model_of(0.5, lengths=LogNormalLengths(mean=100, cap=800, sigma=1.0))
    rollout = {"group_size": SIZE, "max_concurrent_groups": 8, "straggler_factor": 1.5}
    config = make_config(
        run={"steps": 10**6},
        rollout=rollout,
        schedule={"groups_per_step": GROUPS, "max_staleness": 0},
    )
    coordinator = Coordinator(config, NumberedPrompts("safety"), fence=1)
    report = simulate_performance(config, model, coordinator, steps=30)
    status = coordinator.status()
    assert status.continued > 0
    assert (status.begun_anew, status.failed_attempts, report.dropped) == (0, 0, {})
    assert report.trained_length_mean == pytest.approx(report.generated_length_mean)


def test_garbage_collection_counts_only_while_it_is_timed() -> None:
    clock = CollectorClock()
    before = list(gc.callbacks)
    with clock:
        gc.collect()
    timed = clock.seconds
    gc.collect()
    assert clock.seconds == timed > 0
    assert gc.callbacks == before
