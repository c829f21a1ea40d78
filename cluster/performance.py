"""How fast a run would be: the real coordinator in virtual time against modelled roles.

Owns the shell and the clock. ``simulator`` looks for broken bookkeeping under faults; this module
predicts speed: engines share themselves between their sequences, responses have a heavy tail, new
weights travel over links and make engines pause, actors die at a rate. One run of thousands of GPUs
takes seconds for each step.

A ``Policy`` is whatever hears events and gives commands. The coordinator is ours; a benchmark may
bring another system's.

Not modelled: the network and the processor of the driver, prompts to be read, contention for links
between engines, groups that are interrupted.
"""

from __future__ import annotations

import math
import random
import time
from typing import Protocol

from cluster.ledger import Ledger
from cluster.modelled_fleet import Arrives, Dies, Happening, Joins, ModelledFleet, Serves, Wakes
from cluster.panel import verifier_fleet
from cluster.performance_report import CollectorClock, Counters, Meter, PerformanceReport
from cluster.protocol import (
    REFERENCE,
    ActorJoined,
    Command,
    Event,
    Fail,
    Finish,
    GrantLease,
    GroupGenerated,
    InterruptLease,
    LoadWeights,
    Publish,
    ReferenceReady,
    Score,
    ScoreReference,
    ScoringLost,
    StepCommitted,
    Tick,
    Train,
    VerdictsReady,
    WeightsPublished,
)
from cluster.run_model import LatencyModel, RunModel
from cluster.timetable import StepDone, Timetable
from cluster.transitions import Transition
from safeladder.config import Config
from safeladder.errors import SafeladderError
from safeladder.records import GroupKey, Prompt, StepReport, TrainOrder, Verdict, VerdictStatus

TICK_S = 0.1
"""Virtual time between two ticks of the coordinator's clock, as in the driver's loop."""
PROMPTS_PER_PASS = 1_000_000


class Policy(Protocol):
    """Who decides; ``Coordinator`` is one."""

    def handle(self, event: Event) -> list[Command]:
        """Take one event; the commands to carry out, in order."""
        ...

    def drain_transitions(self) -> list[Transition]:
        """What happened to groups since the last call."""
        ...


class NumberedPrompts:
    """Endless prompts of one route, without a text."""

    def __init__(self, route: str, per_pass: int = PROMPTS_PER_PASS) -> None:
        self._route = route
        self._per_pass = per_pass

    def prompt(self, key: GroupKey) -> Prompt:
        """The prompt at a place."""
        return Prompt(id=str(key), messages=(), route=self._route)

    def next_key(self, key: GroupKey | None) -> GroupKey:
        """The place after ``key``."""
        if key is None:
            return GroupKey(0, 0)
        if key.ordinal + 1 < self._per_pass:
            return GroupKey(key.epoch, key.ordinal + 1)
        return GroupKey(key.epoch + 1, 0)


def simulate_performance(
    config: Config,
    model: RunModel,
    policy: Policy,
    *,
    steps: int,
    warmup_steps: int = 3,
    seed: int = 0,
    ledger: Ledger | None = None,
) -> PerformanceReport:
    """Run until ``warmup_steps + steps`` steps are committed, of which the last ``steps`` count.
    ``config.run.steps`` should be far beyond that, since the end of a run is not its steady state.
    With a ledger each event's transitions are committed to it. Same arguments, same report, but for
    processor seconds. Raises ``SafeladderError`` if the policy gives the run up."""
    return _Shell(config, model, policy, seed, ledger).run(warmup_steps, steps)


class _Shell:
    def __init__(
        self, config: Config, model: RunModel, policy: Policy, seed: int, ledger: Ledger | None
    ) -> None:
        self._config = config
        self._model = model
        self._policy = policy
        self._rng = random.Random(seed)
        self._ledger = ledger
        self._fence = 1 if ledger is None else ledger.raise_fence()
        self._timetable = Timetable[Happening]()
        cap = config.rollout.max_concurrent_groups
        self._fleet = ModelledFleet(model, cap, self._rng, self._timetable, self._tell)
        self._learner_free_s = 0.0
        self._meter = Meter()
        self._ticked_s = -math.inf
        self._collector = CollectorClock()

    def run(self, warmup_steps: int, steps: int) -> PerformanceReport:
        started_s = time.thread_time()
        with self._collector:
            self._start()
            self._run_to(warmup_steps)
            self._meter.start(self._counters())
            self._run_to(warmup_steps + steps)
        last = self._counters()
        processor_s = time.thread_time() - started_s
        group_size = self._config.rollout.group_size
        return self._meter.report(steps, last, self._fleet.size, group_size, processor_s)

    # ---- the loop -----------------------------------------------------------------------------

    def _run_to(self, version: int) -> None:
        while self._meter.version < version:
            for happening in self._timetable.advance(TICK_S):
                self._happen(happening)
            if self._timetable.now_s - self._ticked_s >= TICK_S:
                self._tick()

    def _tick(self) -> None:
        self._ticked_s = self._timetable.now_s
        self._tell(Tick(self._ticked_s))

    def _tell(self, event: Event) -> None:
        collected_s = self._collector.seconds
        started_s = time.thread_time()
        commands = self._policy.handle(event)
        transitions = self._policy.drain_transitions()
        if self._ledger is not None:
            self._ledger.apply(transitions, self._fence)
        policy_s = time.thread_time() - started_s
        self._meter.policy_s += policy_s - (self._collector.seconds - collected_s)
        self._meter.num_events += 1
        for transition in transitions:
            if transition.reason is not None:
                self._meter.dropped(transition.key, transition.reason.value)
        for command in commands:
            self._execute(command)

    def _execute(self, command: Command) -> None:
        match command:
            case GrantLease():
                self._fleet.generate(command.engine, command.lease, self._fence)
            case InterruptLease():
                self._fleet.interrupt(command)
            case Score():
                self._score(command)
            case ScoreReference():
                assert self._model.references is not None, "no model of the reference"
                event = ReferenceReady(command.key, command.attempt, command.call, "logprobs")
                self._timetable.add(self._latency_s(self._model.references), event)
            case Train():
                self._train(command.order)
            case Publish():
                done_s = self._occupy_learner(self._model.learner.publish_s)
                self._timetable.add(done_s, WeightsPublished(command.version))
            case LoadWeights():
                self._fleet.load(command)
            case Fail():
                raise SafeladderError(f"the simulated run fails: {command.text}")
            case Finish():
                raise SafeladderError("config.run.steps ends the run before it is measured")
            case _:
                pass

    def _happen(self, happening: Happening) -> None:
        match happening:
            case Wakes() | Arrives() | Serves() | Dies() | Joins():
                self._fleet.happen(happening)
            case StepDone(order=order):
                self._commit(order)
            case GroupGenerated(header=header):
                self._meter.generated(header)
                self._tell(happening)
            case VerdictsReady() | ScoringLost():
                self._meter.calls_out -= 1
                self._tell(happening)
            case _:
                self._tell(happening)

    def _start(self) -> None:
        self._tick()
        fleets = {verifier_fleet(name): self._model.verifiers for name in self._config.principles}
        if self._config.reference.enabled:
            if self._model.references is None:
                raise SafeladderError("the config has a reference, the model of the run has none")
            fleets[REFERENCE] = self._model.references
        for fleet, latency in fleets.items():
            for number in range(latency.actors):
                self._tell(ActorJoined(fleet, f"{fleet}-{number}", latency.calls_per_actor))
        self._fleet.start()

    # ---- verifiers, references, learner -------------------------------------------------------

    def _score(self, call: Score) -> None:
        self._meter.call_out()
        seconds = self._latency_s(self._model.verifiers)
        if self._rng.random() < self._model.faults.lost_call_share:
            event: Event = ScoringLost(call.key, call.attempt, call.fleet, call.call)
        else:
            verdicts = tuple(_verdict(call, index) for index in call.indexes)
            event = VerdictsReady(call.key, call.attempt, call.fleet, call.call, verdicts)
        self._timetable.add(seconds, event)

    def _latency_s(self, model: LatencyModel) -> float:
        return model.median_s * math.exp(model.sigma * self._rng.gauss(0.0, 1.0))

    def _train(self, order: TrainOrder) -> None:
        tokens = sum(self._meter.tokens(group.key) for group in order.groups)
        learner = self._model.learner
        delay_s = self._occupy_learner(learner.fixed_s + tokens * learner.seconds_per_token)
        self._timetable.add(delay_s, StepDone(order))

    def _occupy_learner(self, seconds: float) -> float:
        """One thing after the other. Returns how long from now until this one is done."""
        now_s = self._timetable.now_s
        self._learner_free_s = max(self._learner_free_s, now_s) + seconds
        self._meter.total.learner_busy_s += seconds
        return self._learner_free_s - now_s

    def _commit(self, order: TrainOrder) -> None:
        for group in order.groups:
            self._meter.trained(group.key)
        self._meter.version = order.step
        report = StepReport(step=order.step, version=order.step, metrics={}, seconds=0.0)
        self._tell(StepCommitted(report))

    def _counters(self) -> Counters:
        now_s = self._timetable.now_s
        self._meter.total.lost_groups = self._fleet.num_lost
        ahead_s = max(0.0, self._learner_free_s - now_s)
        return self._meter.now(now_s, ahead_s, self._fleet.decoding_s)


def _verdict(call: Score, index: int) -> Verdict:
    return Verdict(
        sample_id=f"{call.key}/{index}",
        principle=call.principle,
        verifier="modelled",
        verifier_version="1",
        status=VerdictStatus.OK,
        score=(index % 4) / 4,
    )
