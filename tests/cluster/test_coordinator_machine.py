"""Coordinator and ledger under any order of events that hypothesis can think of."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.coordinator import Coordinator
from cluster.ledger import Ledger
from cluster.panel import Panel
from cluster.protocol import (
    REFERENCE,
    ROLLOUT,
    ActorJoined,
    ActorLost,
    Command,
    EngineLeaving,
    EngineServing,
    Event,
    Fail,
    Finish,
    GenerationFailed,
    GrantLease,
    GroupGenerated,
    GroupInterrupted,
    LoadWeights,
    PanelChanged,
    PayloadLost,
    Publish,
    ReferenceLost,
    ReferenceReady,
    Release,
    RetireFleet,
    Score,
    ScoreReference,
    ScoringLost,
    StepCommitted,
    Tick,
    Train,
    VerdictsReady,
    WeightsPublished,
)
from safeladder.partials import InterruptCause, PartialHeader
from safeladder.records import (
    GenerationFailure,
    GroupKey,
    InvalidCause,
    Lease,
    StepReport,
    TrainOrder,
)
from tests.cluster.coordinator_play import Judgement, Prompts, header, make_config, verdict

CHECKPOINT_EVERY = 2
CONFIG = make_config(
    run={"steps": 5},
    principles={
        "safety": {"verifier": "a:B", "on_invalid": "retry"},
        "format": {"verifier": "a:B", "on_invalid": "drop_sample"},
    },
    routes={"safety": {"safety": 1.0, "format": 0.5}},
    rollout={"group_size": 3, "max_concurrent_groups": 3, "straggler_factor": 1.0},
    reference={"kl_coefficient": 0.1},
    reward={"breaker": {"window": 12, "min_verdicts": 6, "max_invalid_share": 0.3}},
    schedule={"groups_per_step": 2, "max_staleness": 1},
)
ANSWERABLE = (GrantLease, Score, ScoreReference, Train, Publish, LoadWeights)
CAUSES: tuple[InterruptCause, ...] = ("asked", "deadline")
JUDGEMENTS = st.sampled_from([0.0, 0.25, 1.0, 1.0, None, InvalidCause.TIMEOUT])


class CoordinatorMachine(RuleBasedStateMachine):
    """The test plays every role, and keeps its own account of what was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger.open(None, "machine")
        self.now_s = 0.0
        self.num_engines = 0
        self.batches: dict[int, TrainOrder] = {}
        self.min_versions: dict[str, int] = {}
        self.past: list[Event] = []
        self.released: set[Any] = set()
        self.start_driver(checkpoint=0)

    def start_driver(self, checkpoint: int) -> None:
        self.fence = self.ledger.raise_fence(checkpoint)
        self.coordinator = Coordinator(CONFIG, Prompts(size=7), self.fence, self.ledger.snapshot())
        self.batches = {s: order for s, order in self.batches.items() if s <= checkpoint}
        self.checkpoint = checkpoint
        self.open: list[Command] = []
        self.served: dict[str, int] = {}
        self.last: Command | None = None
        self.panel = Panel.first(CONFIG)
        self.fleets: set[str] = set()
        for fleet in (*self.panel.fleets.values(), REFERENCE):
            self.add_fleet(fleet)
        self.add_engine()
        self.send(Tick(self.now_s))

    def add_fleet(self, fleet: str) -> None:
        self.fleets.add(fleet)
        self.send(ActorJoined(fleet, f"{fleet}-0", 2))

    def add_engine(self) -> None:
        self.num_engines += 1
        name = f"rollout-{self.num_engines}"
        self.served[name] = 0
        self.send(ActorJoined(ROLLOUT, name, 3), EngineServing(name, 0))

    def send(self, *events: Event) -> None:
        for event in events:
            commands = self.coordinator.handle(event)
            self.ledger.apply(self.coordinator.drain_transitions(), self.fence)
            for command in commands:
                self.note(command)

    def note(self, command: Command) -> None:
        assert self.last is None, f"{command} came after {self.last}"
        if isinstance(command, Finish | Fail):
            self.last = command
        elif isinstance(command, GrantLease):
            served = self.served[command.engine]
            assert len(self.batches) - served <= CONFIG.schedule.max_staleness
            assert command.lease.begun not in self.released
        elif isinstance(command, Release):
            self.released.update(command.payloads)
        elif isinstance(command, Score):
            assert command.fleet in self.fleets, f"{command} goes to a fleet that is gone"
        elif isinstance(command, RetireFleet):
            assert command.fleet not in self.panel.fleets.values()
            self.fleets.remove(command.fleet)
            return
        elif isinstance(command, Train):
            self.open = [c for c in self.open if not isinstance(c, Train)]
        self.open.append(command)

    def answer(self, event: Event) -> None:
        self.past.append(event)
        self.send(event)

    def take(self, data: st.DataObject, *kinds: type[Any]) -> Any:
        chosen = data.draw(st.sampled_from([c for c in self.open if isinstance(c, kinds)]))
        self.open.remove(chosen)
        return chosen

    def has_open(self, *kinds: type[Any]) -> bool:
        return any(isinstance(c, kinds) for c in self.open)

    @rule(count=st.integers(1, 40), salt=st.integers(0, 5))
    def work(self, count: int, salt: int) -> None:
        """The oldest open commands are carried out as they should be."""
        for _ in range(count):
            command = next((c for c in self.open if isinstance(c, ANSWERABLE)), None)
            if command is None:
                return
            self.open.remove(command)
            self.carry_out(command, [(i * 7 + salt) % 4 / 4 for i in range(3)])

    def carry_out(self, command: Command, judgements: list[Judgement]) -> None:
        match command:
            case GrantLease(engine=engine, lease=lease):
                payload = f"{lease.key} {lease.attempt} {lease.fence}"
                self.min_versions[payload] = version = self.oldest(engine, lease)
                self.answer(GroupGenerated(header(lease, engine, version), payload))
            case Score(key=key, attempt=attempt, call=call):
                verdicts = tuple(verdict(command, i, judgements[i]) for i in command.indexes)
                self.answer(VerdictsReady(key, attempt, command.fleet, call, verdicts))
            case ScoreReference(key=key, attempt=attempt, call=call):
                payload = f"reference {command.payload}"
                self.answer(ReferenceReady(key, attempt, call, payload))
            case Train(order=order):
                self.train(order)
            case Publish(version=version):
                self.answer(WeightsPublished(version))
            case LoadWeights(engine=engine, version=version) if engine in self.served:
                self.served[engine] = version
                self.send(EngineServing(engine, version))
            case _:
                pass

    def oldest(self, engine: str, lease: Lease) -> int:
        """Version of the oldest token that the lease leads to."""
        served = self.served.get(engine, 0)
        return served if lease.begun is None else min(served, self.min_versions[lease.begun])

    @precondition(lambda self: self.has_open(GrantLease))
    @rule(
        data=st.data(), num_tokens=st.integers(0, 9), cause=st.sampled_from(["asked", "deadline"])
    )
    def interrupt(self, data: st.DataObject, num_tokens: int, cause: InterruptCause) -> None:
        grant: GrantLease = self.take(data, GrantLease)
        lease = grant.lease
        payload = f"part of {lease.key} {lease.attempt} {lease.fence}" if num_tokens else None
        version = self.oldest(grant.engine, lease)
        if payload:
            self.min_versions[payload] = version
        part = PartialHeader(
            key=lease.key, attempt=lease.attempt, fence=lease.fence, engine=grant.engine,
            cause=cause, num_tokens=num_tokens, min_version=version if payload else None,
            generate_s=1.0,
        )  # fmt: skip
        self.answer(GroupInterrupted(part, payload))

    @precondition(lambda self: self.served)
    @rule(data=st.data())
    def let_an_engine_leave(self, data: st.DataObject) -> None:
        self.send(EngineLeaving(data.draw(st.sampled_from(sorted(self.served)))))
        self.add_engine()

    def train(self, order: TrainOrder) -> None:
        trained = {g.key for batch in self.batches.values() for g in batch.groups}
        assert order.step == len(self.batches) + 1
        assert len(order.groups) == CONFIG.schedule.groups_per_step
        assert order.fence == self.fence
        for group in order.groups:
            assert group.key not in trained
            staleness = order.step - 1 - self.min_versions[group.payload]
            assert staleness <= CONFIG.schedule.max_staleness
            assert len({r for r in group.rewards if r is not None}) > 1
        self.batches[order.step] = order
        if order.step % CHECKPOINT_EVERY == 0:
            self.checkpoint = order.step
        report = StepReport(step=order.step, version=order.step, metrics={}, seconds=1.0)
        self.answer(StepCommitted(report))

    @precondition(lambda self: self.has_open(*ANSWERABLE))
    @rule(data=st.data(), judgements=st.lists(JUDGEMENTS, min_size=3, max_size=3))
    def work_out_of_order(self, data: st.DataObject, judgements: list[Judgement]) -> None:
        self.carry_out(self.take(data, *ANSWERABLE), judgements)

    @precondition(lambda self: self.has_open(GrantLease))
    @rule(data=st.data(), retryable=st.booleans())
    def fail_to_generate(self, data: st.DataObject, retryable: bool) -> None:
        grant: GrantLease = self.take(data, GrantLease)
        failure = GenerationFailure(
            key=grant.lease.key, attempt=grant.lease.attempt, fence=grant.lease.fence,
            engine=grant.engine, cause="engine_error", detail="", retryable=retryable,
        )  # fmt: skip
        self.answer(GenerationFailed(failure))

    @precondition(lambda self: self.has_open(Score, ScoreReference))
    @rule(data=st.data())
    def lose_call(self, data: st.DataObject) -> None:
        call = self.take(data, Score, ScoreReference)
        if isinstance(call, Score):
            self.answer(ScoringLost(call.key, call.attempt, call.fleet, call.call))
        else:
            self.answer(ReferenceLost(call.key, call.attempt, call.call))

    @precondition(lambda self: self.has_open(Train))
    @rule(data=st.data())
    def lose_payload_of_a_step(self, data: st.DataObject) -> None:
        order = self.take(data, Train).order
        group = data.draw(st.sampled_from(order.groups))
        self.answer(PayloadLost(group.key, group.attempt))

    @rule(ordinal=st.integers(0, 12), attempt=st.integers(1, 3))
    def lose_any_payload(self, ordinal: int, attempt: int) -> None:
        self.lose_payload(GroupKey(*divmod(ordinal, 7)), attempt)

    @precondition(lambda self: any(isinstance(e, GroupGenerated) for e in self.past))
    @rule(data=st.data())
    def lose_a_payload_that_was_made(self, data: st.DataObject) -> None:
        made = [e.header for e in self.past if isinstance(e, GroupGenerated)]
        header = data.draw(st.sampled_from(made[-6:]))
        self.lose_payload(header.key, header.attempt)

    def lose_payload(self, key: GroupKey, attempt: int) -> None:
        running = [c.order for c in self.open if isinstance(c, Train)]
        in_step = any(g.key == key and g.attempt == attempt for o in running for g in o.groups)
        if in_step:  # then the step cannot run
            self.open = [c for c in self.open if not isinstance(c, Train)]
        self.answer(PayloadLost(key, attempt))

    @precondition(lambda self: self.has_open(LoadWeights))
    @rule(data=st.data())
    def fail_to_load(self, data: st.DataObject) -> None:
        command: LoadWeights = self.take(data, LoadWeights)
        if command.engine in self.served:
            self.send(EngineServing(command.engine, self.served[command.engine]))

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0, 100.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.send(Tick(self.now_s))

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def repeat_an_old_answer(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.past[-30:]))
        old_payload = isinstance(event, PayloadLost)
        foreign = isinstance(event, StepCommitted) and event.report.step not in self.batches
        if not old_payload and not foreign:  # those would be news, not echoes
            self.send(event)

    @precondition(lambda self: self.served)
    @rule(data=st.data(), is_replaced=st.booleans())
    def lose_engine(self, data: st.DataObject, is_replaced: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.served)))
        del self.served[name]
        self.send(ActorLost(ROLLOUT, name))
        if is_replaced or not self.served:
            self.add_engine()

    @rule(kept=st.sets(st.sampled_from(["safety", "format"])))
    def swap_verifiers(self, kept: set[str]) -> None:
        self.panel = self.panel.changed(CONFIG, kept)
        self.send(PanelChanged(self.panel))
        for fleet in set(self.panel.fleets.values()) - self.fleets:
            self.add_fleet(fleet)
        self.send(Tick(self.now_s))  # lets go of the fleets that nobody needs

    @rule(data=st.data())
    def replace_a_scoring_actor(self, data: st.DataObject) -> None:
        fleet = data.draw(st.sampled_from(sorted(self.fleets)))
        self.send(ActorLost(fleet, f"{fleet}-0"), ActorJoined(fleet, f"{fleet}-0", 2))

    @rule(dice=st.integers(0, 5))
    def kill_driver(self, dice: int) -> None:
        if dice == 5 or self.last is not None:
            self.start_driver(self.checkpoint)

    @invariant()
    def the_ledger_is_sound_and_agrees_with_the_learner(self) -> None:
        schedule = CONFIG.schedule
        assert self.ledger.audit(groups_per_step=2, max_staleness=schedule.max_staleness) == []
        own = {s: [g.key for g in order.groups] for s, order in self.batches.items()}
        assert self.ledger.trained_groups() == own

    @invariant()
    def coordinator_and_ledger_count_the_same(self) -> None:
        counts = {s: n for s, n in self.coordinator.status().counts.items() if n}
        assert counts == {state.value: n for state, n in self.ledger.counts().items()}

    @invariant()
    def no_more_groups_are_on_their_way_than_admission_allows(self) -> None:
        counts = self.coordinator.status().counts
        ended = counts["dropped"] + counts["pending"]
        newest = max(self.served.values(), default=0)
        limit = CONFIG.schedule.admission_limit(max(newest, len(self.batches)))
        assert sum(counts.values()) - ended <= limit

    def teardown(self) -> None:
        self.ledger.close()


class LongCoordinatorMachine(CoordinatorMachine):
    """The same, searched for longer by the nightly tests."""


def searched(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


CoordinatorMachine.TestCase.settings = searched(20)
LongCoordinatorMachine.TestCase.settings = searched(300)
TestCoordinatorMachine = CoordinatorMachine.TestCase
TestLongCoordinatorMachine = pytest.mark.slow(LongCoordinatorMachine.TestCase)
