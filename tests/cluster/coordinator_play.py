"""Plays the roles against a coordinator, one event at a time, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from cluster.asking import PromptSource
from cluster.coordinator import Coordinator
from cluster.panel import verifier_fleet
from cluster.protocol import (
    REFERENCE,
    ROLLOUT,
    ActorJoined,
    Command,
    EngineServing,
    Event,
    GrantLease,
    GroupGenerated,
    InterruptLease,
    ReferenceReady,
    Score,
    ScoreReference,
    StepCommitted,
    Tick,
    Train,
    VerdictsReady,
    WeightsPublished,
)
from cluster.transitions import LedgerSnapshot, Transition
from safeladder.config import Config
from safeladder.records import (
    GroupHeader,
    GroupKey,
    InvalidCause,
    Lease,
    Message,
    Prompt,
    StepReport,
    Verdict,
    VerdictStatus,
)

C = TypeVar("C")
Judgement = float | InvalidCause | None
"""A score, the cause of an INVALID verdict, or None for NOT_APPLICABLE."""


class Prompts:
    """``size`` prompts on one route, pass after pass."""

    def __init__(self, route: str = "safety", size: int = 1000) -> None:
        self._route = route
        self._size = size

    def prompt(self, key: GroupKey) -> Prompt:
        return Prompt(id=str(key), messages=(Message("user", "hello"),), route=self._route)

    def next_key(self, key: GroupKey | None) -> GroupKey:
        if key is None:
            return GroupKey(0, 0)
        if key.ordinal + 1 < self._size:
            return GroupKey(key.epoch, key.ordinal + 1)
        return GroupKey(key.epoch + 1, 0)


def make_config(**sections: dict[str, Any]) -> Config:
    """A small run: one principle, groups of 2, 2 groups in a step, bound 1, 3 steps. ``sections``
    replace keys of a section; ``principles`` and ``routes`` are replaced whole."""
    tree: dict[str, dict[str, Any]] = {
        "run": {"name": "play", "steps": 3},
        "model": {"path": "none"},
        "data": {"train": []},
        "principles": {"safety": {"verifier": "rewards.safety:SafetyRules"}},
        "routes": {"safety": {"safety": 1.0}},
        "rollout": {"group_size": 2, "max_concurrent_groups": 100},
        "schedule": {"groups_per_step": 2, "max_staleness": 1},
    }
    for name, section in sections.items():
        whole = name in ("principles", "routes")
        tree[name] = section if whole else {**tree.get(name, {}), **section}
    return Config.model_validate(tree)


def header(lease: Lease, engine: str, version: int, size: int | None = None) -> GroupHeader:
    return GroupHeader(
        key=lease.key,
        attempt=lease.attempt,
        fence=lease.fence,
        engine=engine,
        lengths=(7,) * (lease.sampling.num_samples if size is None else size),
        min_version=version,
        max_version=version,
        sha256="0" * 64,
        generate_s=1.0,
    )


def verdict(call: Score, index: int, judgement: Judgement, *, retryable: bool = True) -> Verdict:
    status, score, cause = VerdictStatus.OK, None, None
    if judgement is None:
        status = VerdictStatus.NOT_APPLICABLE
    elif isinstance(judgement, InvalidCause):
        status, cause = VerdictStatus.INVALID, judgement
    else:
        score = judgement
    return Verdict(
        sample_id=f"{call.key}/{index}",
        principle=call.principle,
        verifier="test",
        verifier_version="1",
        status=status,
        score=score,
        cause=cause,
        evidence="because",
        retryable=retryable and cause is not None,
    )


class Play:
    """A coordinator with its fleets up (unless ``start=False``), at time 0."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        prompts: PromptSource | None = None,
        engines: int = 1,
        fence: int = 1,
        restored: LedgerSnapshot | None = None,
        start: bool = True,
    ) -> None:
        self.config = config or make_config()
        self.coordinator = Coordinator(self.config, prompts or Prompts(), fence, restored)
        self.now_s = 0.0
        self.open: list[Command] = []
        """Commands that were given and not taken by the test yet."""
        self.transitions: list[Transition] = []
        if start:
            for fleet in [verifier_fleet(p) for p in self.config.principles]:
                self.send(ActorJoined(fleet, f"{fleet}-0", 1000))
            if self.config.reference.enabled:
                self.send(ActorJoined(REFERENCE, "reference-0", 1000))
            for i in range(engines):
                self.join_engine(f"rollout-{i}", version=0)
            self.tick()

    def send(self, *events: Event) -> None:
        for event in events:
            self.open += self.coordinator.handle(event)
        self.transitions += self.coordinator.drain_transitions()

    def tick(self, seconds: float = 0.0) -> None:
        self.now_s += seconds
        self.send(Tick(self.now_s))

    def take(self, kind: type[C]) -> list[C]:
        """The open commands of a kind, which are then not open any more."""
        taken = [c for c in self.open if isinstance(c, kind)]
        self.open = [c for c in self.open if not isinstance(c, kind)]
        return taken

    def join_engine(self, name: str, version: int | None, capacity: int | None = None) -> None:
        capacity = capacity or self.config.rollout.max_concurrent_groups
        self.send(ActorJoined(ROLLOUT, name, capacity))
        if version is not None:
            self.send(EngineServing(name, version))

    def generate(self, grant: GrantLease, version: int = 0) -> str:
        """Answer a lease; the handle of its payload."""
        payload = f"{grant.lease.key} attempt {grant.lease.attempt}"
        self.send(GroupGenerated(header(grant.lease, grant.engine, version), payload))
        return payload

    def judge(
        self, call: Score, judgements: Sequence[Judgement], *, retryable: bool = True
    ) -> None:
        """Answer a score, one judgement for each index asked for."""
        verdicts = tuple(
            verdict(call, index, judgement, retryable=retryable)
            for index, judgement in zip(call.indexes, judgements, strict=True)
        )
        self.send(VerdictsReady(call.key, call.attempt, call.fleet, call.call, verdicts))

    def refer(self, call: ScoreReference) -> None:
        payload = f"reference of {call.payload}"
        self.send(ReferenceReady(call.key, call.attempt, call.call, payload))

    def score_all(self) -> None:
        """Answer all open scores and reference calls; siblings earn different rewards."""
        while calls := self.take(Score):
            for call in calls:
                size = self.config.rollout.group_size
                self.judge(call, [index / size for index in call.indexes])
        for reference_call in self.take(ScoreReference):
            self.refer(reference_call)

    def fill_step(self, version: int = 0) -> None:
        """Generate and score all open leases."""
        for grant in self.take(GrantLease):
            self.generate(grant, version)
        self.score_all()

    def commit(self) -> Train:
        """Commit the open step; its order."""
        (train,) = self.take(Train)
        step = train.order.step
        self.send(StepCommitted(StepReport(step=step, version=step, metrics={}, seconds=1.0)))
        return train

    def publish(self, version: int, *engines: str) -> None:
        """Publish a version and let the engines load it."""
        self.send(WeightsPublished(version))
        self.send(*(EngineServing(engine, version) for engine in engines))

    @property
    def counts(self) -> dict[str, int]:
        """States that hold any group."""
        return {s: n for s, n in self.coordinator.status().counts.items() if n}

    @property
    def dropped(self) -> dict[str, int]:
        return dict(self.coordinator.status().dropped_by_reason)


def keys(items: Sequence[GrantLease | InterruptLease | Score | ScoreReference]) -> list[int]:
    """Ordinals of commands, in their order."""
    return [c.lease.key.ordinal if isinstance(c, GrantLease) else c.key.ordinal for c in items]


def config_with(on_invalid: str = "retry", size: int = 3, **more: Any) -> Config:
    """Two principles; ``on_invalid`` is the policy of ``safety``."""
    judge = {"verifier": "a:B"}
    return make_config(
        principles={"safety": {**judge, "on_invalid": on_invalid}, "format": judge},
        routes={"safety": {"safety": 1.0, "format": 0.5}},
        rollout={"group_size": size, "max_concurrent_groups": 1},
        schedule={"groups_per_step": 1, "max_staleness": 0},
        **more,
    )


def generated(config: Config) -> tuple[Play, Score, Score]:
    """One generated group, and its scores under safety and format."""
    play = Play(config)
    (grant,) = play.take(GrantLease)
    play.generate(grant)
    safety, form = play.take(Score)
    assert (safety.principle, form.principle) == ("safety", "format")
    return play, safety, form


def judged(config: Config) -> tuple[Play, ScoreReference]:
    """One group whose verdicts are final, and its reference call."""
    play, safety, form = generated(config)
    play.judge(safety, [0.0, 0.5, 1.0])
    play.judge(form, [1.0, 1.0, 1.0])
    (call,) = play.take(ScoreReference)
    return play, call
