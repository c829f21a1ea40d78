"""A run played against the real coordinator, which leaves on disk what a driver leaves: ledger,
verdict log, batches. Its verdicts are drawn, its verifier loses calls and says INVALID."""

from __future__ import annotations

import asyncio
import io
import random
from typing import Any

import numpy as np

from cluster.asking import PromptSource
from cluster.ledger import Ledger
from cluster.monitor import Monitor
from cluster.panel import Panel
from cluster.protocol import (
    GrantLease,
    LoadWeights,
    PanelChanged,
    Publish,
    Score,
    ScoringLost,
    Train,
    VerdictsReady,
    VerdictsTaken,
)
from cluster.run_directory import RunDirectory
from cluster.telemetry import Telemetry
from cluster.terminal import Terminal
from learners.batches import build_samples, write_batch
from safeladder.config import Config
from safeladder.records import (
    Completion,
    InvalidCause,
    Lease,
    RolloutGroup,
    TrainOrder,
)
from tests.cluster.coordinator_play import Judgement, Play, verdict


class Link:
    """A monitor without an actor between."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def send(self, method: str, **arguments: Any) -> None:
        asyncio.run(getattr(self._monitor, method)(**arguments))

    def pump(self) -> None:
        pass

    def take_notices(self) -> list[str]:
        return []


class DriverOnDisk:
    """One execution of a run, from the start or from a checkpoint."""

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        ledger: Ledger,
        step: int = 0,
        prompts: PromptSource | None = None,
    ) -> None:
        self._run = run
        self._ledger = ledger
        self._fence = ledger.raise_fence(step)
        self._rng = random.Random(self._fence)
        self._leases: dict[str, Lease] = {}
        self._calls: list[Score] = []
        self._telemetry = Telemetry(
            config,
            run,
            Link(Monitor(run.path, config, {})),  # type: ignore[arg-type]
            Terminal(io.StringIO(), config.run.steps),
            pid=1,
            fence=self._fence,
        )
        self._panel = Panel.first(config)
        self._telemetry.panel_in_force(self._panel, {})
        self._play = Play(config, prompts=prompts, fence=self._fence, restored=ledger.snapshot())

    def swap(self, config: Config) -> None:
        """Other weights, or another rule, from now on; the verifiers stay."""
        self._panel = self._panel.changed(config, kept=config.principles)
        self._telemetry.panel_changed(self._panel, {}, "swapped")
        self._play.send(PanelChanged(self._panel))

    def train(self, until: int) -> None:
        """Go on until a step is committed; later groups are left in flight."""
        play = self._play
        while play.coordinator.status().version < until:
            for grant in play.take(GrantLease):
                self._leases[play.generate(grant, version=play.coordinator.status().version)] = (
                    grant.lease
                )
            self._calls += play.take(Score)
            if self._calls:  # one by one and in any order, so that a swap finds groups half judged
                self._judge(self._calls.pop(self._rng.randrange(len(self._calls))))
            self._write_down()
            if any(isinstance(command, Train) for command in play.open):
                order = next(c for c in play.open if isinstance(c, Train)).order
                write_batch(self._run.batches, order, self._samples(order))
                play.commit()
            for publish in play.take(Publish):
                play.publish(publish.version, "rollout-0")
            play.take(LoadWeights)
            play.tick(1.0)
        self._write_down()

    def _judge(self, call: Score) -> None:
        if self._rng.random() < 0.25:
            self._play.send(ScoringLost(call.key, call.attempt, call.fleet, call.call))
            return
        said = tuple(verdict(call, index, self._judgement()) for index in call.indexes)
        answer = VerdictsReady(call.key, call.attempt, call.fleet, call.call, said)
        self._play.send(answer)
        if self._rng.random() < 0.1:  # comes twice: the second one must not count
            other = tuple(verdict(call, index, self._judgement()) for index in call.indexes)
            self._play.send(VerdictsReady(call.key, call.attempt, call.fleet, call.call, other))

    def _judgement(self) -> Judgement:
        kind = self._rng.random()
        if kind < 0.1:
            return InvalidCause.TIMEOUT
        return None if kind < 0.2 else self._rng.random()

    def _write_down(self) -> None:
        states = self._play.coordinator.constraints.drain()
        self._ledger.apply(self._play.transitions, self._fence, states)
        self._play.transitions.clear()
        for taken in self._play.take(VerdictsTaken):
            self._telemetry.notice(taken)
        self._telemetry.turn(self._play.coordinator)

    def _samples(self, order: TrainOrder) -> Any:
        payloads = [payload_of(self._leases[group.payload]) for group in order.groups]
        return build_samples(order.groups, payloads, [None] * len(payloads))


def payload_of(lease: Lease) -> RolloutGroup:
    """Completions of one token."""
    one = np.ones(1, np.int32)
    completions = tuple(
        Completion(
            index=index, prompt_tokens=one, tokens=one, behavior_logprobs=np.zeros(1, np.float32),
            token_versions=one, text="", finish_reason="stop",
        )
        for index in range(lease.sampling.num_samples)
    )  # fmt: skip
    return RolloutGroup(
        key=lease.key,
        attempt=lease.attempt,
        fence=lease.fence,
        prompt=lease.prompt,
        completions=completions,
    )
