"""The coordinator: a pure state machine that runs one asynchronous training run.

Owns every decision: which engine generates what and when, which verdicts are asked for, which
groups are trained in which step, what a failure leads to, when the run ends. Events in, commands
out, transitions for the ledger (see ``protocol``). It performs no I/O, has no clock but ``Tick``,
and sees ids, sizes and opaque handles, never tokens.

Who waits for whom::

    engine     ◀ admission: n < (served version + max_staleness + 1) x groups_per_step, and a slot
    verifier   ◀ a GENERATED group, and a slot
    reference  ◀ a group whose verdicts are final and that is worth training, and a slot
    learner    ◀ groups_per_step SCORED groups; not while a principle's policy says pause
    publisher  ◀ a committed step
    finish     ◀ the last version published, and served by every living engine

Every wait ends: a lease, a call, a step, a publication and a load have deadlines that ``Tick``
watches, and what comes later than its deadline, twice, or for an older attempt is counted and
thrown away. A group fails at most ``rollout.max_attempts`` times: an engine's death counts as a
failure of each group it held, since one of them may have killed it. If far more groups are dropped
than trained (``drop_watch``), a principle stays invalid under ``pause`` for an hour, or
no engine can load the newest version while nothing else moves, the run fails instead of going on
for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from cluster.asking import Asking, PromptSource
from cluster.coordinator_status import CoordinatorStatus, Glance, read_glance, read_status
from cluster.drop_watch import DropWatch
from cluster.engines import LOAD_DEADLINE_S
from cluster.group_life import GroupLives
from cluster.groups import Group, GroupTable
from cluster.learner_state import LearnerState
from cluster.lease_desk import LeaseDesk
from cluster.protocol import (
    ROLLOUT,
    ActorJoined,
    ActorLost,
    Alert,
    Command,
    EngineLeaving,
    EngineReported,
    EngineServing,
    Event,
    Fail,
    Finish,
    GenerationFailed,
    GroupGenerated,
    GroupInterrupted,
    PanelChanged,
    PayloadLost,
    Publish,
    ReferenceLost,
    ReferenceReady,
    Release,
    ScoringLost,
    StepCommitted,
    StepLost,
    Tick,
    Train,
    VerdictsReady,
    WeightsPublished,
)
from cluster.score_desk import ScoreDesk
from cluster.transitions import DropReason, GroupState, LedgerSnapshot, Transition
from safeladder.config import Config
from safeladder.constraint_weights import ConstraintWeights
from safeladder.errors import DivergedError, SafeladderError
from safeladder.records import TrainOrder

_NEWS_OF_LOSS = (ScoringLost, ReferenceLost, PayloadLost)
"""Often come in a row, before the ``ActorLost`` that explains them: commands wait for the event
after them, so that nothing is sent to what is known as dead one event later."""
_ON_THEIR_WAY = (GroupState.LEASED, GroupState.GENERATED, GroupState.ADMITTED)


class Coordinator:
    """See the module. ``fence`` is the one that ``Ledger.raise_fence`` returned, ``restored`` the
    ledger's snapshot after it."""

    def __init__(
        self,
        config: Config,
        prompts: PromptSource,
        fence: int,
        restored: LedgerSnapshot | None = None,
    ) -> None:
        restored = restored or LedgerSnapshot()
        self._config = config
        self._fence = fence
        self.asking = Asking(prompts, config.curriculum, restored.draws)
        self._groups = GroupTable(self.asking, restored)
        self._leases = LeaseDesk(config, self.asking, fence, restored.version, self._groups, self)
        self._learner = LearnerState(restored.version, config)
        self.constraints = ConstraintWeights(
            config.constraints, config.schedule.max_staleness + 1, restored.constraints
        )
        self._scores = ScoreDesk(config, self._groups, self, self.constraints)
        self._commands: list[Command] = []
        self._now_s: float | None = None
        self._is_over = False
        self._served_by_s: float | None = None
        """Latest end of the wait for engines to serve the last version."""
        self._drops = DropWatch(config.schedule.groups_per_step)
        self._trained_by_staleness = Counter(dict(restored.trained_by_staleness))
        self.lives = GroupLives()
        self._num_late = 0
        self._num_failed_attempts = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            Tick: self._on_tick,
            ActorJoined: self._on_joined,
            ActorLost: self._on_lost,
            EngineLeaving: lambda event: self._leases.drain(event.engine),
            EngineServing: self._on_serving,
            EngineReported: lambda event: self._leases.note_load(event.engine, event.load),
            GroupGenerated: self._on_generated,
            GroupInterrupted: lambda event: self._count_late(self._leases.interrupted(event)),
            GenerationFailed: self._on_generation_failed,
            VerdictsReady: lambda event: self._count_late(self._scores.take_verdicts(event)),
            ScoringLost: lambda event: self._count_late(self._scores.take_loss(event)),
            ReferenceReady: self._on_reference,
            ReferenceLost: lambda event: self._count_late(self._scores.take_reference_loss(event)),
            PayloadLost: self._on_payload_lost,
            PanelChanged: lambda event: self._scores.change(event.panel),
            StepCommitted: self._on_committed,
            StepLost: self._on_step_lost,
            WeightsPublished: self._on_published,
        }

    def handle(self, event: Event) -> list[Command]:
        """Take one event; the commands to carry out, in order. Before the first ``Tick`` nothing
        is asked for, since no deadline could be set. After ``Finish`` or ``Fail`` nothing is."""
        self._commands = []
        if not self._is_over:
            self._handlers[type(event)](event)
            if self._now_s is not None and not isinstance(event, _NEWS_OF_LOSS):
                self._go_on(self._now_s)
        return self._commands

    def drain_transitions(self) -> list[Transition]:
        """What happened to groups since the last call. Write it to the ledger before the commands
        that came with it are carried out."""
        return self._groups.drain_transitions()

    def status(self) -> CoordinatorStatus:
        """A look at the run."""
        return read_status(
            self._config,
            self._groups,
            self._leases.engines,
            self._scores,
            self._learner,
            trained_by_staleness=self._trained_by_staleness,
            late_results=self._num_late,
            failed_attempts=self._num_failed_attempts,
            continued=self._leases.num_continued,
            begun_anew=self._leases.num_begun_anew,
        )

    def glance(self) -> Glance:
        """What everybody does at this moment."""
        return read_glance(self._leases.engines, self._scores, self._learner)

    @property
    def last_step(self) -> int:
        """The run ends with it."""
        return self._learner.last_step

    def end_early(self) -> int:
        """Let the running step, else the last one, be the run's last; its number. Groups that are
        in no step are dropped: nobody needs them any more."""
        last = self._leases.last_step = self._learner.end_early()
        for group in self._groups.in_no_step:
            if group.state is GroupState.LEASED:
                self._leases.end(group)
            self._scores.close(group)
            self._groups.drop(group, DropReason.UNNEEDED, "the run ends before it")
        return last

    # ---- rulings, for the desks too -------------------------------------------------------

    def emit(self, command: Command) -> None:
        """Add a command; none follows the last one."""
        if not self._is_over:
            self._commands.append(command)
            self._is_over = isinstance(command, Finish | Fail)

    def admit(self, group: Group) -> None:
        """GENERATED → SCORED."""
        self._groups.move(group, GroupState.SCORED)

    def retry(self, group: Group, detail: str) -> None:
        """Back to PENDING, or dropped once the attempts are spent."""
        if group.state is GroupState.LEASED:
            self._leases.end(group)
        group.num_failures += 1
        self._num_failed_attempts += 1
        if group.num_failures >= self._config.rollout.max_attempts:
            self.drop(group, DropReason.FAILED, f"{group.num_failures} attempts; {detail}")
        else:
            self._scores.close(group)
            self._release(self._groups.retry(group, detail))

    def drop(self, group: Group, reason: DropReason, detail: str) -> None:
        """End a group without training."""
        self._scores.close(group)
        self._release(self._groups.drop(group, reason, detail))
        if (command := self._drops.add(reason, detail)) is not None:
            self.emit(command)

    def fail(self, text: str, exit_code: int) -> None:
        """End the run."""
        self.emit(Fail(text, exit_code))

    # ---- events -------------------------------------------------------------------------------

    def _on_tick(self, event: Tick) -> None:
        self._now_s = self._groups.now_s = event.now_s
        overdue = self._learner.overdue(event.now_s)
        if overdue is not None:
            self.fail(overdue, SafeladderError.exit_code)
        self._leases.tick(event.now_s)
        self._scores.tick(event.now_s)

    def _on_joined(self, event: ActorJoined) -> None:
        if event.fleet == ROLLOUT:
            self._leases.join(event)
        else:
            assert event.capacity is not None, f"{event.actor} has no number of calls"
            self._scores.join(event.fleet, event.actor, event.capacity)

    def _on_lost(self, event: ActorLost) -> None:
        if event.fleet == ROLLOUT:
            self._leases.lose(event.actor)
        else:
            self._scores.lose(event.fleet, event.actor)

    def _on_serving(self, event: EngineServing) -> None:
        self._leases.note_version(event, self._now_s or 0.0)
        if self._leases.is_stuck and self._is_still:  # its bytes are lost: nobody has them
            text = f"no engine can load version {self._learner.published}"
            self.fail(f"{text}; go on by `safeladder resume`", SafeladderError.exit_code)

    def _on_generated(self, event: GroupGenerated) -> None:
        header = event.header
        group = self._leases.find(header.key, header.attempt, header.fence)
        if group is None:
            self._num_late += 1
            if header.fence != self._fence or not self._groups.find(header.key, header.attempt):
                self._release([event.payload])
            return
        if len(header.lengths) != self._config.rollout.group_size:
            self._release([event.payload])
            self.retry(group, f"{len(header.lengths)} completions from {header.engine}")
            return
        self._leases.generated(group, header)
        group.header, group.payload = header, event.payload
        self._groups.move(group, GroupState.GENERATED)
        if self._staleness(group) > self._config.schedule.max_staleness:
            self.drop(group, DropReason.STALE, "older than the bound when generated")
        else:
            self._scores.open(group)

    def _on_generation_failed(self, event: GenerationFailed) -> None:
        failure = event.failure
        group = self._leases.find(failure.key, failure.attempt, failure.fence)
        if group is None:
            self._num_late += 1
            return
        detail = f"{failure.cause}: {failure.detail}"
        if failure.retryable:
            self.retry(group, detail)
        else:
            self._leases.end(group)
            self.drop(group, DropReason.FAILED, detail)

    def _on_reference(self, event: ReferenceReady) -> None:
        if not self._scores.take_reference(event):
            self._num_late += 1
            group = self._groups.find(event.key, event.attempt)
            if group is None or group.reference_call != event.call:
                self._release([event.payload])

    def _on_payload_lost(self, event: PayloadLost) -> None:
        group = self._groups.find(event.key, event.attempt)
        if group is None or group.payload is None:
            self._num_late += 1
            return
        if group.state is GroupState.ADMITTED:
            self._learner.cancel_step()
        self.retry(group, "a payload was lost")

    def _on_committed(self, event: StepCommitted) -> None:
        if event.report.step != self._learner.running_step:
            self._num_late += 1
            return
        for group in self._groups.admitted:
            self._trained_by_staleness[self._staleness(group)] += 1
            self._groups.move(group, GroupState.TRAINED, step=event.report.step)
            self._release(group.payloads)
        self.constraints.commit()
        self.asking.learn(event.report.step)
        self._learner.commit()

    def _on_step_lost(self, event: StepLost) -> None:
        text = f"the learner was lost in step {event.step}; resume from the newest checkpoint"
        self.fail(text, SafeladderError.exit_code)

    def _on_published(self, event: WeightsPublished) -> None:
        self._count_late(self._learner.publish(event.version))

    # ---- what can go on, goes on --------------------------------------------------------------

    def _go_on(self, now_s: float) -> None:
        version = self._learner.start_publication(now_s)
        if version is not None:  # before the next Train, which changes the weights
            self.emit(Publish(version))
        self._scores.start_calls()
        self._train(now_s)
        self._leases.grant(now_s)
        self._leases.load(self._learner.published, now_s)
        self._finish(now_s)

    @property
    def _is_still(self) -> bool:
        """Whether nothing is under way that could lead to a newer version."""
        counts, learner = self._groups.counts, self._learner
        is_moving = any(counts[state] for state in _ON_THEIR_WAY)
        return not (is_moving or learner.is_trained or learner.published < learner.version)

    def _train(self, now_s: float) -> None:
        """Order the next step if its groups are there. After a lost payload some of them may be
        ADMITTED already. At bound 0, as in deterministic mode, only the groups of one step live at
        a time: a step then has the first ones that are not dropped, whatever finished first."""
        is_busy = self._learner.running_step is not None or self._learner.is_trained
        if is_busy or self._scores.pause_reason:
            return
        missing = self._config.schedule.groups_per_step - self._groups.counts[GroupState.ADMITTED]
        enough = self._groups.num_scored >= missing
        ready = self._fresh(self._groups.scored) if enough else []
        if len(ready) < missing:
            self._leases.lead.starve()
            return
        try:  # stored with the order: a checkpoint of the step never lacks it
            self.constraints.propose(self._learner.version + 1)
        except DivergedError as error:
            self.fail(str(error), error.exit_code)
            return
        step = self._learner.start_step(now_s)
        for group in ready[:missing]:
            self._groups.move(group, GroupState.ADMITTED, step=step)
            self.lives.add(group.entered_s)
        self._leases.lead.step_begins(len(ready) - missing)
        self._drops.step_begins()
        chosen = tuple(group.to_train() for group in self._groups.admitted)
        self.emit(Train(TrainOrder(step=step, fence=self._fence, groups=chosen)))

    def _fresh(self, groups: Iterable[Group]) -> list[Group]:
        """The groups within the staleness bound; the others are dropped here."""
        fresh = []
        for group in groups:
            staleness = self._staleness(group)
            if staleness <= self._config.schedule.max_staleness:
                fresh.append(group)
            else:
                self.drop(group, DropReason.STALE, f"staleness {staleness} at training")
        return fresh

    def _finish(self, now_s: float) -> None:
        steps = self._learner.last_step
        if not self._learner.is_trained or self._learner.published < steps:
            return
        self._served_by_s = self._served_by_s or now_s + LOAD_DEADLINE_S
        if self._leases.all_serve(steps):
            self.emit(Finish())
        elif now_s >= self._served_by_s:
            self.emit(Alert("weights", f"some engines never served the last version, {steps}"))
            self.emit(Finish())

    def _staleness(self, group: Group) -> int:
        assert group.header is not None, f"{group.key} has no header"
        return self._learner.version - group.header.min_version

    def _count_late(self, is_timely: bool) -> None:
        self._num_late += not is_timely

    def _release(self, payloads: Iterable[Any]) -> None:
        if handles := tuple(payloads):
            self.emit(Release(handles))
