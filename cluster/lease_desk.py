"""From PENDING to GENERATED: gives leases to engines, and keeps engines on the newest version.

Owns admission, the deadlines of leases, and the table of engines. What becomes of a group whose
lease failed it does not carry out itself: it tells the ``Rulings`` of its owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cluster.engines import Engine, EngineTable
from cluster.groups import Group, GroupTable, PromptSource
from cluster.lead import Lead
from cluster.protocol import ActorJoined, Alert, EngineServing, GrantLease, LoadWeights
from cluster.rulings import Rulings
from cluster.transitions import GroupState
from safeladder.config import Config
from safeladder.engine_profile import EngineLoad
from safeladder.records import GroupHeader, GroupKey, Lease, Sampling

GRACE_S = 60.0
"""A lease may be answered this much later than the engine's own deadline."""
GROUPS_REMEMBERED = 64
"""The expected size of a group is a mean over about so many."""


class LeaseDesk:
    """All leases of a run. No engine gets one below ``first_version``, the version that the run
    goes on from: nothing is generated before the restored weights are there."""

    def __init__(
        self,
        config: Config,
        prompts: PromptSource,
        fence: int,
        first_version: int,
        groups: GroupTable,
        rulings: Rulings,
    ) -> None:
        self._config = config
        self._prompts = prompts
        self._fence = fence
        self._first_version = first_version
        self._groups = groups
        self._rulings = rulings
        self._engines = EngineTable(config.rollout.group_size)
        self.lead = Lead(config.schedule)
        self._answer_tokens = float(config.rollout.group_size * config.rollout.max_new_tokens)
        """Expected tokens of all siblings; as long as they can be, before any came."""
        self._num_generated = 0
        self._ends: dict[GroupKey, float] = {}
        """LEASED group → deadline. All leases last equally long, so in order of deadline too."""

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All living engines."""
        return self._engines.all

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
        self._engines.free(group.engine, group.key)

    def generated(self, group: Group, header: GroupHeader) -> None:
        """A lease is over, and its group is there."""
        if header.load is not None:
            self._engines.note_load(header.engine, header.load)
        self._num_generated = min(self._num_generated + 1, GROUPS_REMEMBERED)
        self._answer_tokens += (sum(header.lengths) - self._answer_tokens) / self._num_generated
        self._engines.finish(header.engine, group.key)
        self.end(group)

    def tick(self, now_s: float) -> None:
        """Overdue leases count as failed attempts."""
        overdue = []
        for key, end in self._ends.items():
            if end > now_s:
                break
            overdue.append(self._groups[key])
        for group in overdue:
            detail = f"{group.engine} gave no answer to the lease of {group.key} in time"
            self._rulings.emit(Alert("engine", detail))
            self._rulings.retry(group, detail)

    def grant(self, now_s: float) -> None:
        """Give out leases while an engine has a slot and admission allows."""
        while (engine := self._engines.next_free(self._groups.num_leased, self._limit)) is not None:
            group = self._groups.next_to_lease()
            prompt = self._prompts.prompt(group.key)
            group.route, group.engine = prompt.route, engine.name
            self._groups.move(group, GroupState.LEASED)
            self._engines.grant(engine.name, group.key)
            deadline_s = self._config.rollout.group_deadline_s
            self._ends[group.key] = now_s + deadline_s + GRACE_S
            lease = Lease(
                key=group.key,
                attempt=group.attempt,
                fence=self._fence,
                prompt=prompt,
                sampling=self._sampling(group.key),
                deadline_s=deadline_s,
            )
            self._rulings.emit(GrantLease(engine.name, lease))

    def load(self, newest: int, now_s: float) -> None:
        """Bring engines that serve an older version up to the newest published one."""
        for engine in self._engines.start_loads(newest, now_s):
            self._rulings.emit(LoadWeights(engine, newest))

    def all_serve(self, version: int) -> bool:
        """Whether every living engine serves this version or a newer one."""
        return all(e.served is not None and e.served >= version for e in self.engines)

    def _retry(self, keys: Iterable[GroupKey], engine: str) -> None:
        for key in keys:
            self._rulings.retry(self._groups[key], f"{engine} was lost")

    def _limit(self, served_version: int) -> int:
        """Admission, but no further ahead of the learner than it needs, and never more groups than
        the run has steps for."""
        if served_version < self._first_version:
            return 0
        schedule = self._config.schedule
        total = self._config.run.steps * schedule.groups_per_step
        ahead = self._groups.counts[GroupState.TRAINED] + self.lead.num_groups
        return min(schedule.admission_limit(served_version), ahead, total)

    def _sampling(self, key: GroupKey) -> Sampling:
        rollout = self._config.rollout
        return Sampling(
            num_samples=rollout.group_size,
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            seed=_seed(self._config.run.seed, key) if self._config.run.deterministic else None,
        )


def _seed(run_seed: int, key: GroupKey) -> int:
    """48 bits of SHA-256 over (run seed, key): the same in every run with this seed."""
    digest = hashlib.sha256(f"{run_seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
