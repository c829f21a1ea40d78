"""From PENDING to GENERATED: gives leases to engines, and keeps engines on the newest version.

Owns admission, the deadlines of leases, and the table of engines. What becomes of a group whose
lease failed it does not carry out itself: it tells the ``Rulings`` of its owner.

A lease is interrupted at its deadline, when its engine leaves (``drain``), or because it is a
straggler while another engine has room. Its group goes back to PENDING with what was made of it,
and the next lease goes on from there. That is no failure while tokens are made, up to
``MAX_INTERRUPTS`` times. If the group's place in line is such that its oldest token would be older
than the bound when it is trained, it starts anew: the admission rule, asked again. A deterministic
run interrupts nothing.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Any

from cluster.asking import Asking
from cluster.engines import Engine, EngineTable
from cluster.groups import Begun, Group, GroupTable
from cluster.lead import Lead
from cluster.protocol import (
    ActorJoined,
    Alert,
    EngineServing,
    GrantLease,
    GroupInterrupted,
    InterruptLease,
    LoadWeights,
    Release,
)
from cluster.rulings import Rulings
from cluster.transitions import GroupState
from safeladder.config import Config
from safeladder.engine_profile import EngineLoad
from safeladder.records import GroupHeader, GroupKey, Lease, Sampling

GRACE_S = 60.0
"""A lease may be answered this much later than the engine's own deadline."""
GROUPS_REMEMBERED = 64
"""The expected size of a group is a mean over about so many, its expected time a median."""
MIN_TIMES = 8
"""Nobody is a straggler before so many groups are generated."""
MAX_INTERRUPTS = 8
"""A group that has been interrupted so often fails at its next deadline."""
MAX_MOVES = 2
"""A group that has been interrupted so often is long, not slow: it stays where it is."""


class LeaseDesk:
    """All leases of a run. No engine gets one below ``first_version``, the version that the run
    goes on from: nothing is generated before the restored weights are there."""

    def __init__(
        self,
        config: Config,
        asking: Asking,
        fence: int,
        first_version: int,
        groups: GroupTable,
        rulings: Rulings,
    ) -> None:
        self._config = config
        self._asking = asking
        self._fence = fence
        self._first_version = first_version
        self._groups = groups
        self._rulings = rulings
        num_samples = config.rollout.group_size + config.rollout.oversample
        self._engines = EngineTable(num_samples)
        self.lead = Lead(config.schedule)
        self.last_step = config.run.steps
        """No group is leased for a later one."""
        rollout = config.rollout
        most = rollout.max_model_tokens - rollout.max_prompt_tokens
        self._answer_tokens = float(num_samples * most)
        """Expected tokens of all siblings; as long as they can be, before any came."""
        self._num_generated = 0
        self._ends: dict[GroupKey, float] = {}
        """LEASED group → deadline. All leases last equally long, so in order of deadline too."""
        self._asked: set[GroupKey] = set()
        """LEASED groups that are being interrupted."""
        self._times: deque[float] = deque(maxlen=GROUPS_REMEMBERED)
        self.num_continued = 0
        """Leases that went on from an interrupted one."""
        self.num_begun_anew = 0
        """Interrupted groups that would have been too old when trained."""

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All living engines."""
        return self._engines.all

    @property
    def is_stuck(self) -> bool:
        """Whether no engine that stays can load the version that it is asked to."""
        return self._engines.is_stuck

    def join(self, event: ActorJoined) -> None:
        """An engine is up; it gets work once it says which version it serves."""
        group_tokens = self._config.rollout.max_prompt_tokens + self._answer_tokens
        orphans = self._engines.join(event.actor, event.capacity, event.profile, group_tokens)
        self._retry(orphans, event.actor)

    def lose(self, engine: str) -> None:
        """An engine is gone, and what it held begins anew. Its death counts as a failed attempt
        of each of these groups: a prompt that kills engines must not do so for ever."""
        self._retry(self._engines.lose(engine), engine)

    def note_version(self, event: EngineServing, now_s: float) -> None:
        """An engine says what it serves."""
        asked = self._engines.serving(event.engine, event.version, now_s, event.profile)
        if asked is not None:
            text = f"{event.engine} did not load version {asked}; it serves {event.version}"
            self._rulings.emit(Alert("weights", text))

    def note_load(self, engine: str, load: EngineLoad) -> None:
        """An engine says how full it is."""
        self._engines.note_load(engine, load)

    def find(self, key: GroupKey, attempt: int, fence: int) -> Group | None:
        """The group whose lease is answered so, if it still holds."""
        group = self._groups.find(key, attempt)
        is_held = group is not None and group.state is GroupState.LEASED and fence == self._fence
        return group if is_held else None

    def end(self, group: Group) -> None:
        """A lease is over, in whatever way."""
        assert group.engine is not None, f"{group.key} was leased to nobody"
        del self._ends[group.key]
        self._asked.discard(group.key)
        self._engines.free(group.engine, group.key)

    def generated(self, group: Group, header: GroupHeader) -> None:
        """A lease is over, and its group is there."""
        if header.load is not None:
            self._engines.note_load(header.engine, header.load)
        self._num_generated = min(self._num_generated + 1, GROUPS_REMEMBERED)
        num_tokens = sum(header.lengths + header.stopped) + header.told
        self._answer_tokens += (num_tokens - self._answer_tokens) / self._num_generated
        self._times.append(header.generate_s)
        self._engines.finish(header.engine, group.key)
        self.end(group)
        self._forget(group)

    def interrupted(self, event: GroupInterrupted) -> bool:
        """A lease was stopped; its group waits for the next one. False if it came too late."""
        header, payload = event.header, event.payload
        group = self.find(header.key, header.attempt, header.fence)
        if group is None:
            if payload is not None and not self._groups.goes_on_from(header.key, payload):
                self._rulings.emit(Release((payload,)))
            return False
        num_before = 0 if group.begun is None else group.begun.num_tokens
        has_grown = payload is not None and header.num_tokens > num_before
        if header.cause == "deadline" and not (has_grown and group.num_interrupts < MAX_INTERRUPTS):
            if payload is not None:
                self._rulings.emit(Release((payload,)))
            self._rulings.retry(group, f"deadline: {header.num_tokens} tokens from {header.engine}")
            return True
        self.end(group)
        begun = group.begun
        if payload is not None and header.min_version is not None:
            self._forget(group)
            begun = Begun(payload, header.num_tokens, header.min_version)
        detail = f"interrupted ({header.cause}): {header.num_tokens} tokens so far"
        self._groups.hand_back(group, begun, detail)
        return True

    def drain(self, engine: str) -> None:
        """An engine is to leave (``EngineLeaving``): it gets nothing more, and its leases are
        interrupted and go on in others. Once ``status`` shows it without a lease, the shell can
        end it and nothing is lost; what it still holds when ``ActorLost`` comes begins anew. In a
        deterministic run it works its leases off."""
        for key in self._engines.leave(engine):
            self._interrupt(self._groups[key])

    def tick(self, now_s: float) -> None:
        """Overdue leases count as failed attempts; stragglers move on."""
        self._end_overdue(now_s)
        self._move_stragglers(now_s)

    def _end_overdue(self, now_s: float) -> None:
        overdue = []
        for key, end in self._ends.items():
            if end > now_s:
                break
            overdue.append(self._groups[key])
        for group in overdue:
            detail = f"{group.engine} gave no answer to the lease of {group.key} in time"
            self._rulings.emit(Alert("engine", detail))
            self._rulings.retry(group, detail)

    def _move_stragglers(self, now_s: float) -> None:
        factor = self._config.rollout.straggler_factor
        if factor is None or len(self._times) < MIN_TIMES:
            return
        whole_s = self._config.rollout.group_deadline_s + GRACE_S
        patience_s = factor * median(self._times)
        room: dict[str, int] = {}
        for key, end in self._ends.items():
            if now_s - (end - whole_s) <= patience_s:
                break
            group = self._groups[key]
            assert group.engine is not None, f"{key} was leased to nobody"
            if group.num_interrupts < MAX_MOVES and key not in self._asked:
                if group.engine not in room:
                    room[group.engine] = self._engines.num_free_beside(group.engine)
                if room[group.engine] > len(self._asked):
                    self._interrupt(group)

    def _interrupt(self, group: Group) -> None:
        if group.key not in self._asked and not self._config.run.deterministic:
            assert group.engine is not None, f"{group.key} was leased to nobody"
            self._asked.add(group.key)
            self._rulings.emit(InterruptLease(group.engine, group.key, group.attempt))

    def grant(self, now_s: float) -> None:
        """Give out leases while an engine has a slot and admission allows."""
        while (engine := self._next_engine()) is not None:
            group = self._groups.next_to_lease()
            begun = self._go_on_from(group)
            prompt = self._asking.prompt(group.key)
            group.route, group.engine = prompt.route, engine.name
            self._groups.move(group, GroupState.LEASED)
            self._engines.grant(engine.name, group.key)
            rollout = self._config.rollout
            self._ends[group.key] = now_s + rollout.group_deadline_s + GRACE_S
            lease = Lease(
                key=group.key,
                attempt=group.attempt,
                fence=self._fence,
                prompt=prompt,
                sampling=self._sampling(group.key),
                deadline_s=rollout.group_deadline_s,
                surplus=rollout.oversample,
                is_interruptible=not self._config.run.deterministic,
                begun=begun,
            )
            self._rulings.emit(GrantLease(engine.name, lease))

    def _next_engine(self) -> Engine | None:
        """For a group that was interrupted any engine but the one that it left, if there is."""
        groups = self._groups
        return self._engines.next_free(groups.num_leased, self._limit, groups.next_left)

    def _go_on_from(self, group: Group) -> Any | None:
        """The payload that a lease goes on from, unless the group would be too old when trained."""
        if group.begun is None:
            return None
        limit = self._config.schedule.admission_limit(group.begun.min_version)
        if self._groups.num_ahead(group) < limit:
            self.num_continued += 1
            return group.begun.payload
        self.num_begun_anew += 1
        self._forget(group)
        return None

    def _forget(self, group: Group) -> None:
        """What earlier attempts made is not needed any more."""
        if group.begun is not None:
            self._rulings.emit(Release((group.begun.payload,)))
            group.begun = None

    def load(self, newest: int, now_s: float) -> None:
        """Bring engines that serve an older version up to the newest published one."""
        for engine in self._engines.start_loads(newest, now_s):
            self._rulings.emit(LoadWeights(engine, newest))

    def all_serve(self, version: int) -> bool:
        """Whether every living engine serves this version or a newer one."""
        return all(
            e.is_leaving or (e.served is not None and e.served >= version) for e in self.engines
        )

    def _retry(self, keys: Iterable[GroupKey], engine: str) -> None:
        for key in keys:
            self._rulings.retry(self._groups[key], f"{engine} was lost")

    def _limit(self, served_version: int) -> int:
        """Admission, but no further ahead of the learner than it needs, and never more groups than
        the run has steps for."""
        if served_version < self._first_version:
            return 0
        schedule = self._config.schedule
        total = self.last_step * schedule.groups_per_step
        ahead = self._groups.counts[GroupState.TRAINED] + self.lead.num_groups
        return min(schedule.admission_limit(served_version), ahead, total)

    def _sampling(self, key: GroupKey) -> Sampling:
        rollout = self._config.rollout
        return Sampling(
            num_samples=rollout.group_size + rollout.oversample,
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            seed=_seed(self._config.run.seed, key) if self._config.run.deterministic else None,
        )


def _seed(run_seed: int, key: GroupKey) -> int:
    """48 bits of SHA-256 over (run seed, key): the same in every run with this seed."""
    digest = hashlib.sha256(f"{run_seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
