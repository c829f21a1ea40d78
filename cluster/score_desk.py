"""From GENERATED to SCORED: asks verifiers and references, and applies each principle's policy.

Owns the calls to the scoring fleets and the principles that hold training up (``pause``). What
becomes of a group it does not carry out itself: it tells the ``Rulings`` of its owner.
"""

from __future__ import annotations

import math

from cluster.breaker import Breaker
from cluster.calls import CallId, CallQueue
from cluster.groups import Group, GroupTable
from cluster.panel import Panel
from cluster.probes import Probes
from cluster.protocol import (
    REFERENCE,
    Alert,
    PauseTraining,
    ReferenceLost,
    ReferenceReady,
    ResumeTraining,
    RetireFleet,
    Score,
    ScoreReference,
    ScoringLost,
    VerdictsReady,
    VerdictsTaken,
)
from cluster.rulings import Rulings
from cluster.scoring import MIN_SIBLINGS, GroupScores, Outcome, PrincipleScores, has_variance
from cluster.transitions import DropReason
from safeladder.config import Config
from safeladder.constraint_weights import ConstraintWeights
from safeladder.errors import VerifierUnavailableError
from safeladder.records import GroupKey

GRACE_S = 60.0
"""A call may be answered this much later than the role's own deadline."""
REFERENCE_DEADLINE_S = 600.0
PAUSE_RETRY_S = 5.0
"""A principle that pauses training is asked again this often, and so is a probe."""
PAUSE_BUDGET_S = 3600.0
"""Training stays paused this long at most; then the run fails."""


class ScoreDesk:
    """All scoring calls of a run."""

    def __init__(
        self,
        config: Config,
        groups: GroupTable,
        rulings: Rulings,
        constraints: ConstraintWeights,
    ) -> None:
        self._config = config
        self._groups = groups
        self._rulings = rulings
        self._constraints = constraints
        self._now_s = 0.0
        self._panel = Panel.first(config)
        self._principles: dict[str, str] = {}
        """Verifier fleet → its principle, fleets that are being retired included."""
        self._breakers: dict[str, Breaker] = {}
        self._probes = Probes(groups)
        self._references = CallQueue(REFERENCE_DEADLINE_S + GRACE_S)
        self.queues: dict[str, CallQueue] = {}
        """Fleet → its calls."""
        self._ask_again_at: dict[tuple[GroupKey, str], float] = {}
        """(group, principle) that pauses training → when to ask again, infinite while asked."""
        self.change(self._panel)
        if config.reference.enabled:
            self.queues[REFERENCE] = self._references
        self._paused_since_s = 0.0

    @property
    def pause_reason(self) -> str | None:
        """What holds training up, or None."""
        names = sorted({principle for _, principle in self._ask_again_at})
        return f"no valid verdict from {', '.join(names)}" if names else None

    def change(self, panel: Panel) -> None:
        """Judge by this panel what is opened from now on. A group that waits for a verifier which
        the panel no longer has would wait for ever: it is generated anew, and judged by the new."""
        self._panel = panel
        for principle, fleet in panel.fleets.items():
            if fleet not in self.queues:
                timeout_s = panel.config.principles[principle].timeout_s
                self.queues[fleet] = CallQueue(timeout_s + GRACE_S)
                self._principles[fleet] = principle
                self._breakers[fleet] = Breaker(panel.config.reward.breaker)
            else:
                self._breakers[fleet].follow(panel.config.reward.breaker)
                self._wake(fleet)
        for key, principle in list(self._ask_again_at):
            if (key, principle) not in self._ask_again_at:
                continue  # given up for another of its principles a moment ago
            if self._scores(key, principle).fleet != panel.fleets.get(principle):
                self._rulings.retry(self._groups[key], f"the verifier of {principle} was replaced")

    def join(self, fleet: str, actor: str, capacity: int) -> None:
        """An actor is up."""
        if fleet in self.queues:
            self.queues[fleet].join(actor, capacity)

    def lose(self, fleet: str, actor: str) -> None:
        """An actor is gone."""
        if fleet in self.queues:
            self._lose_calls(fleet, self.queues[fleet].lose(actor))

    def open(self, group: Group) -> None:
        """Begin to score a GENERATED group: under all its principles at once."""
        assert group.header is not None, f"{group.key} has no header"
        group.scores = GroupScores(
            len(group.header.lengths),
            group.route,
            self._panel,
            self._breakers,
            self._constraints.factors,
        )
        for scores in group.scores.principles.values():
            self._ask(group, scores)
        if group.scores.is_final:
            self._judge(group)

    def close(self, group: Group) -> None:
        """Forget a group that is given up; what it still waits for need not be asked. Fleets that
        it has done with may be retired by now."""
        if group.scores is None:
            return
        for name, scores in group.scores.principles.items():
            if scores.fleet in self.queues:
                call = CallId(group.key, group.attempt, scores.call)
                self.queues[scores.fleet].withdraw(call)
            if probe := self._probes.of_group(scores.fleet, group.key):
                self.queues[scores.fleet].withdraw(probe.call)
                self._probes.end(scores.fleet, self._now_s)
            self._end_pause(group, name)
        self._references.withdraw(CallId(group.key, group.attempt, group.reference_call))

    def take_verdicts(self, event: VerdictsReady) -> bool:
        """False if the answer is late."""
        call = CallId(event.key, event.attempt, event.call)
        if event.fleet not in self._principles:  # retired, and nobody waits for it
            return False
        if not self.queues[event.fleet].settle(call):
            return False
        if probe := self._probes.find(event.fleet, call):
            self._probes.end(event.fleet, self._now_s + PAUSE_RETRY_S)
            if probe.is_passed(event.verdicts):
                self._breakers[event.fleet].prove(probe.turn)
                self._wake(event.fleet)
            return True
        found = self._find(event.fleet, call)
        if found is None:
            return False
        group, scores = found
        self._follow(group, scores, scores.take(group.key, event.verdicts))
        self._wake(event.fleet)
        return True

    def take_loss(self, event: ScoringLost) -> bool:
        """False if the news is late."""
        call = CallId(event.key, event.attempt, event.call)
        is_out = event.fleet in self._principles and self.queues[event.fleet].settle(call)
        return is_out and self._lose_call(event.fleet, call)

    def take_reference(self, event: ReferenceReady) -> bool:
        """False if the answer is late."""
        call = CallId(event.key, event.attempt, event.call)
        group = self._groups.find(call.key, call.attempt)
        if not self._references.settle(call) or group is None:
            return False
        group.reference = event.payload
        self._rulings.admit(group)
        return True

    def take_reference_loss(self, event: ReferenceLost) -> bool:
        """False if the news is late."""
        call = CallId(event.key, event.attempt, event.call)
        return self._references.settle(call) and self._lose_reference_call(call)

    def tick(self, now_s: float) -> None:
        """Overdue calls count as lost; principles that pause training are asked again."""
        self._now_s = now_s
        for fleet, queue in self.queues.items():
            self._lose_calls(fleet, queue.expire(now_s))
        for (key, principle), ask_at in list(self._ask_again_at.items()):
            if ask_at <= now_s:
                self._ask_again_at[key, principle] = math.inf
                self._ask(self._groups[key], self._scores(key, principle))
        self._probe()
        self._retire_fleets()
        if self._ask_again_at and now_s - self._paused_since_s > PAUSE_BUDGET_S:
            text = f"training was paused for {PAUSE_BUDGET_S:.0f} s: {self.pause_reason}"
            self._rulings.fail(text, VerifierUnavailableError.exit_code)

    def start_calls(self) -> None:
        """Send what waits and finds a slot."""
        for fleet in self._principles:
            for call in self.queues[fleet].start(self._now_s):
                self._start(fleet, call)
        for call in self._references.start(self._now_s):
            self._rulings.emit(ScoreReference(*call, self._groups[call.key].payload))

    def _start(self, fleet: str, call: CallId) -> None:
        probe, found = self._probes.find(fleet, call), self._find(fleet, call)
        if probe is not None and found is None:  # its group has been trained meanwhile
            self.queues[fleet].settle(call)
            self._probes.end(fleet, self._now_s)
            return
        assert found is not None, f"{call} waits for a group that is gone"
        group, scores = found
        if probe is None:
            scores.turn = scores.breaker.turn
        self._rulings.emit(
            Score(
                *call[:2],
                fleet,
                call.call,
                scores.principle,
                group.payload,
                scores.open if probe is None else (probe.index,),
                scores.policy.timeout_s,
            )
        )

    def _probe(self) -> None:
        """While groups wait for a verifier whose breaker is open, see whether it works."""
        for key, principle in self._ask_again_at:
            scores = self._scores(key, principle)
            if scores.breaker.is_open:
                turn = scores.breaker.turn
                probe = self._probes.start(scores.fleet, principle, turn, self._now_s)
                if probe is not None:
                    self.queues[scores.fleet].ask(probe.call)

    def _wake(self, fleet: str) -> None:
        """Once a breaker is closed, what waited for it is asked for again at once."""
        if self._breakers[fleet].is_open:
            return
        for (key, principle), ask_at in self._ask_again_at.items():
            scores = self._scores(key, principle)
            was_open = scores.fleet == fleet and scores.turn != scores.breaker.turn
            if was_open and ask_at < math.inf:
                self._ask_again_at[key, principle] = self._now_s

    def _scores(self, key: GroupKey, principle: str) -> PrincipleScores:
        scores = self._groups[key].scores
        assert scores is not None, f"{key} pauses training without scores"
        return scores.principles[principle]

    def _retire_fleets(self) -> None:
        """Let go of the fleets that neither the panel nor a group being scored needs."""
        leaving = self._principles.keys() - set(self._panel.fleets.values())
        if not leaving:
            return
        for fleet in leaving - self._groups.fleets_in_use():
            del self.queues[fleet], self._principles[fleet], self._breakers[fleet]
            self._probes.forget(fleet)
            self._rulings.emit(RetireFleet(fleet))

    def _ask(self, group: Group, scores: PrincipleScores) -> None:
        scores.call += 1
        call = CallId(group.key, group.attempt, scores.call)
        self.queues[scores.fleet].ask(call)

    def _find(self, fleet: str, call: CallId) -> tuple[Group, PrincipleScores] | None:
        """The group and its scores, if this attempt is in force. A call that is out is always the
        newest one: the next is asked for only when it is settled."""
        group = self._groups.find(call.key, call.attempt)
        if group is None or group.scores is None:
            return None
        return group, group.scores.principles[self._principles[fleet]]

    def _lose_calls(self, fleet: str, calls: list[CallId]) -> None:
        for call in calls:
            if fleet == REFERENCE:
                self._lose_reference_call(call)
            else:
                self._lose_call(fleet, call)

    def _lose_call(self, fleet: str, call: CallId) -> bool:
        if self._probes.find(fleet, call):
            self._probes.end(fleet, self._now_s + PAUSE_RETRY_S)
            return True
        found = self._find(fleet, call)
        if found is None:
            return False
        group, scores = found
        outcome = scores.lose(group.key, self._config.rollout.max_attempts)
        self._follow(group, scores, outcome)
        return True

    def _lose_reference_call(self, call: CallId) -> bool:
        group = self._groups.find(call.key, call.attempt)
        if group is None:
            return False
        if call.call >= self._config.rollout.max_attempts:
            detail = f"{call.call} calls to the reference were lost"
            self._rulings.drop(group, DropReason.FAILED, detail)
        else:
            self._ask_reference(group)
        return True

    def _follow(self, group: Group, scores: PrincipleScores, outcome: Outcome) -> None:
        self._log(group, scores)
        match outcome:
            case "final":
                self._end_pause(group, scores.principle)
                self._conclude(group)
            case "again":
                self._ask(group, scores)
            case "later":
                self._pause(group, scores)
            case "drop":
                self._rulings.drop(group, DropReason.INVALID, scores.explain())
            case "fail":
                self._rulings.fail(scores.explain(), VerifierUnavailableError.exit_code)

    def _log(self, group: Group, scores: PrincipleScores) -> None:
        assert group.scores is not None, f"{group.key} has no scores"
        verdicts, scores.unlogged = scores.unlogged, ()
        if verdicts:
            where = group.key, group.attempt, scores.call, group.route
            panel = group.scores.generation, group.scores.factors
            self._rulings.emit(VerdictsTaken(*where, *panel, verdicts))

    def _conclude(self, group: Group) -> None:
        """Go on once the last principle is final, or as soon as too few siblings are left."""
        assert group.scores is not None, f"{group.key} has no scores"
        if group.scores.num_left < MIN_SIBLINGS:
            detail = f"{group.scores.num_left} siblings with valid verdicts are left"
            self._rulings.drop(group, DropReason.INVALID, detail)
        elif group.scores.is_final:
            self._judge(group)

    def _judge(self, group: Group) -> None:
        """All verdicts are final: worth training? Then the reference, last because it is dear."""
        assert group.scores is not None, f"{group.key} has no scores"
        assert group.header is not None, f"{group.key} has no header"
        self._constraints.observe(
            group.header.min_version, group.route, group.scores.verdicts, group.header.lengths
        )
        group.rewards = group.scores.rewards()
        num_rewards = sum(reward is not None for reward in group.rewards)
        if num_rewards < MIN_SIBLINGS:
            detail = f"{num_rewards} siblings have a reward"
            self._rulings.drop(group, DropReason.INVALID, detail)
        elif self._config.reward.filter_zero_variance and not has_variance(group.rewards):
            self._rulings.drop(group, DropReason.FILTERED, "all siblings earned the same reward")
        elif self._config.reference.enabled:
            self._ask_reference(group)
        else:
            self._rulings.admit(group)

    def _ask_reference(self, group: Group) -> None:
        group.reference_call += 1
        self._references.ask(CallId(group.key, group.attempt, group.reference_call))

    def _pause(self, group: Group, scores: PrincipleScores) -> None:
        is_new = not self._ask_again_at
        self._ask_again_at[group.key, scores.principle] = self._now_s + PAUSE_RETRY_S
        if is_new:
            self._paused_since_s = self._now_s
            self._rulings.emit(PauseTraining(scores.explain()))
            self._rulings.emit(Alert("verifier", scores.explain()))

    def _end_pause(self, group: Group, principle: str) -> None:
        was_paused = self._ask_again_at.pop((group.key, principle), None) is not None
        if was_paused and not self._ask_again_at:
            self._rulings.emit(ResumeTraining())
