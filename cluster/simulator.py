"""A whole run in virtual time: the real coordinator and ledger against modelled roles and faults.

Owns the shell: the same loop as the driver's, with a virtual clock, and a driver that may die at
any turn before or after its ledger commit, or between two commands. One run takes milliseconds, so
fault schedules can be tried by the thousand. What must hold is judged by the ``witness``, which
shares no code with what it judges, and by the ledger's own audit.

The models are simple: one version for each group, independent faults, no contention between calls.
They are meant to find broken bookkeeping, not to predict speed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.asking import PromptSource
from cluster.coordinator import Coordinator
from cluster.ledger import Ledger
from cluster.protocol import Command, Fail, Finish, Tick
from cluster.simulated_roles import Faults, SimulatedRoles
from safeladder.config import Config

TICK_S = 5.0
"""Longest virtual time between two ticks."""
MAX_DRIVER_DEATHS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationReport:
    """How a simulated run ended."""

    seed: int
    faults: Faults
    finished: bool
    failure: str | None
    """Text of ``Fail``, or None."""
    virtual_s: float
    num_events: int
    num_driver_deaths: int
    dropped: Mapping[str, int]
    """Reason → groups."""
    trained_by_staleness: Mapping[int, int]
    late_results: int
    """Of the last driver, as the two below."""
    continued: int
    """Leases that went on from an interrupted one."""
    begun_anew: int
    """Interrupted groups that would have been too old when trained."""
    sampled_lengths: tuple[int, ...]
    """Tokens of every completion of every group leased, once a group; in order of length."""
    trained_lengths: tuple[int, ...]
    """Tokens of every completion trained in the surviving history; in order of length."""
    violations: tuple[str, ...]
    """What must never be, in words; empty for a sound run."""


def simulate(
    config: Config,
    prompts: PromptSource,
    faults: Faults,
    seed: int,
    *,
    lag: int = 0,
    horizon_s: float = 500_000.0,
) -> SimulationReport:
    """Run until ``Finish``, ``Fail`` or ``horizon_s`` virtual seconds (which is a violation). One
    engine serves weights that are ``lag`` versions behind those it is asked to load, until the
    last. The config has one route. Same arguments, same report."""
    with Ledger.open(None, config.run.name) as ledger:
        return _Shell(config, prompts, faults, seed, ledger, lag).run(horizon_s)


class _Shell:
    def __init__(
        self,
        config: Config,
        prompts: PromptSource,
        faults: Faults,
        seed: int,
        ledger: Ledger,
        lag: int,
    ) -> None:
        self._config = config
        self._prompts = prompts
        self._faults = faults
        self._seed = seed
        self._rng = random.Random(seed)
        self._ledger = ledger
        (weights,) = config.routes.values()
        self._roles = SimulatedRoles(config, faults, self._rng, weights, lag)
        self._num_events = 0
        self._num_deaths = 0
        self._coordinator = self._start_driver()

    def run(self, horizon_s: float) -> SimulationReport:
        timetable = self._roles.timetable
        last: Command | None = None
        while last is None and timetable.now_s < horizon_s:
            last = self._turn()
        witness, schedule = self._roles.witness, self._config.schedule
        if isinstance(last, Finish):
            num_dropped = sum(self._ledger.dropped().values())
            witness.check_end(self._config.run.steps, self._ledger.trained_groups(), num_dropped)
        violations = witness.violations + self._ledger.audit(
            groups_per_step=schedule.groups_per_step, max_staleness=schedule.max_staleness
        )
        if last is None:
            waits = "; ".join(self._coordinator.status().waits)
            violations.append(f"no end within {horizon_s:.0f} virtual seconds: {waits}")
        return self._report(last, violations)

    def _start_driver(self) -> Coordinator:
        checkpoint_step = self._roles.checkpoint_step
        fence = self._ledger.raise_fence(checkpoint_step)
        self._roles.start(fence)
        self._fence = fence
        return Coordinator(self._config, self._prompts, fence, self._ledger.snapshot())

    def _turn(self) -> Command | None:
        """One turn of the driver's loop. Returns the last command of the run, if this is it."""
        commands: list[Command] = []
        for happening in self._roles.timetable.advance(TICK_S):
            event = self._roles.observe(happening)
            if event is not None:
                self._num_events += 1
                commands += self._coordinator.handle(event)
        commands += self._coordinator.handle(Tick(self._roles.timetable.now_s))
        if self._dies():
            self._die(commands)
            return None
        transitions = self._coordinator.drain_transitions()
        self._ledger.apply(transitions, self._fence, self._coordinator.constraints.drain())
        for command in commands:
            if isinstance(command, Finish | Fail):
                return command
            self._roles.execute(command)
        return None

    def _dies(self) -> bool:
        return (
            self._num_deaths < MAX_DRIVER_DEATHS
            and self._faults.driver_dies > 0
            and self._rng.random() < self._faults.driver_dies
        )

    def _die(self, commands: Sequence[Command]) -> None:
        """Before the commit, after it, or after some of the commands; then a new driver starts."""
        self._num_deaths += 1
        if self._rng.random() < 0.7:
            transitions = self._coordinator.drain_transitions()
            self._ledger.apply(transitions, self._fence, self._coordinator.constraints.drain())
            for command in commands[: self._rng.randint(0, len(commands))]:
                self._roles.execute(command)
        self._coordinator = self._start_driver()

    def _report(self, last: Command | None, violations: Sequence[str]) -> SimulationReport:
        status = self._coordinator.status()
        return SimulationReport(
            seed=self._seed,
            faults=self._faults,
            finished=isinstance(last, Finish),
            failure=last.text if isinstance(last, Fail) else None,
            virtual_s=self._roles.timetable.now_s,
            num_events=self._num_events,
            num_driver_deaths=self._num_deaths,
            dropped={reason.value: count for reason, count in self._ledger.dropped().items()},
            trained_by_staleness=dict(self._roles.witness.staleness),
            late_results=status.late_results,
            continued=status.continued,
            begun_anew=status.begun_anew,
            sampled_lengths=self._roles.witness.sampled_lengths,
            trained_lengths=self._roles.witness.trained_lengths,
            violations=tuple(violations),
        )
