"""verl's fully asynchronous trainer as a policy of ``cluster.performance``.

Written from its documentation and read in its source (verl-project/verl,
``docs/advance/fully_async.md`` and ``verl/experimental/fully_async_policy``); no code of it is
here. What it does, as modelled:

* The trainer takes ``groups_per_update`` finished groups, oldest first, as soon as there are so
  many, and updates. After ``updates_per_sync`` of these it synchronises weights; it waits for that.
* For the synchronisation the running requests are interrupted and go on afterwards (``partial
  rollout``): engines stand still as long as it lasts.
* Freshness: between two synchronisations no more groups are begun than
  ``(1 + staleness_threshold) · updates_per_sync · groups_per_update``, less those that were in
  flight or in the queue at the last one.
* At most ``concurrency · engines`` groups are in flight (``max_concurrent_samples``; 16 in source).

A group counts as scored when it is generated: the published runs judge by rules.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from cluster.asking import PromptSource
from cluster.protocol import (
    ROLLOUT,
    ActorJoined,
    Command,
    Event,
    GrantLease,
    GroupGenerated,
    LoadWeights,
    Publish,
    StepCommitted,
    Train,
    WeightsPublished,
)
from cluster.transitions import Transition
from safeladder.records import GroupKey, Lease, Sampling, TrainGroup, TrainOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class VerlSettings:
    """The switches of ``async_training`` that matter for speed."""

    groups_per_update: int
    """``require_batches · ppo_mini_batch_size``."""
    updates_per_sync: int
    """``trigger_parameter_sync_step``."""
    staleness_threshold: float
    concurrency: int = 16
    """Groups in flight for each engine, on average."""


class VerlPolicy:
    """See the module. Versions are counted in updates, as ours are, so that ages compare."""

    def __init__(self, settings: VerlSettings, prompts: PromptSource, group_size: int) -> None:
        self._settings = settings
        self._prompts = prompts
        self._sampling = Sampling(
            num_samples=group_size, max_new_tokens=1 << 20, temperature=1.0, top_p=1.0
        )
        self._key: GroupKey | None = None
        self._held: dict[str, int] = {}
        """Engine → groups that it holds."""
        self._queue: deque[GroupKey] = deque()
        self._num_begun = 0
        """Against the budget, since the last synchronisation (``staleness_samples``)."""
        self._num_updates = 0
        self._is_busy = False
        """The trainer updates or synchronises."""
        self._commands: list[Command] = []

    def handle(self, event: Event) -> list[Command]:
        """Take one event; the commands to carry out, in order."""
        self._commands = []
        match event:
            case ActorJoined(fleet=fleet, actor=engine) if fleet == ROLLOUT:
                self._held[engine] = 0
            case GroupGenerated(header=header):
                self._held[header.engine] -= 1
                self._queue.append(header.key)
            case StepCommitted(report=report):
                self._committed(report.step)
            case WeightsPublished():
                self._is_busy = False
                self._num_begun = sum(self._held.values()) + len(self._queue)
            case _:
                return []
        self._feed()
        self._train()
        return self._commands

    def drain_transitions(self) -> list[Transition]:
        """It keeps no ledger."""
        return []

    def _committed(self, step: int) -> None:
        self._num_updates = step
        if step % self._settings.updates_per_sync:
            self._is_busy = False
            return
        self._commands.append(Publish(step))
        self._commands.extend(LoadWeights(engine, step) for engine in self._held)

    def _feed(self) -> None:
        settings = self._settings
        per_sync = settings.groups_per_update * settings.updates_per_sync
        budget = int(per_sync * (1 + settings.staleness_threshold))
        most = min(settings.concurrency * len(self._held), budget)
        num_out = sum(self._held.values())
        while num_out < most and self._num_begun < budget:
            engine = min(self._held, key=self._held.__getitem__)
            self._key = self._prompts.next_key(self._key)
            self._held[engine] += 1
            self._num_begun += 1
            num_out += 1
            prompt = self._prompts.prompt(self._key)
            lease = Lease(
                key=self._key,
                attempt=1,
                fence=1,
                prompt=prompt,
                sampling=self._sampling,
                deadline_s=1e9,
            )
            self._commands.append(GrantLease(engine, lease))

    def _train(self) -> None:
        size = self._settings.groups_per_update
        if self._is_busy or len(self._queue) < size:
            return
        self._is_busy = True
        groups = tuple(
            TrainGroup(
                key=self._queue.popleft(),
                attempt=1,
                payload=None,
                reference=None,
                rewards=(),
                audit="",
            )
            for _ in range(size)
        )
        self._commands.append(Train(TrainOrder(step=self._num_updates + 1, fence=1, groups=groups)))
