"""All rollout engines of a run as one fleet: several kinds, one set of names, one stream of events.

Owns which fleet an engine belongs to. A fleet that has spent its restarts does not end the run as
long as another one has an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from cluster.fleet import Exhausted, Fleet, FleetEvent, Joined
from cluster.protocol import ROLLOUT, ActorJoined
from safeladder.config import Config
from safeladder.fleet_config import fleet_of

log = logging.getLogger(__name__)


def announced(config: Config, event: Joined) -> ActorJoined:
    """What the coordinator hears of an engine that is up: its profile, and the most groups that it
    may hold, whatever its cache bears."""
    cap = config.engine_fleets[fleet_of(event.actor)].rollout.max_concurrent_groups
    return ActorJoined(ROLLOUT, event.actor, cap, event.value.profile)


class RolloutFleets:
    """The fleets by name; otherwise used as one ``Fleet``."""

    name = "rollout"

    def __init__(self, fleets: Mapping[str, Fleet]) -> None:
        self.fleets = dict(fleets)

    @property
    def ready(self) -> list[str]:
        """Names of the engines that take work."""
        return [name for fleet in self.fleets.values() for name in fleet.ready]

    @property
    def sizes(self) -> dict[str, int]:
        """Fleet → engines that it is to have."""
        return {name: fleet.size for name, fleet in self.fleets.items()}

    def said(self, engine: str) -> Any:
        """What the engine said of itself last: at its start, or to a heartbeat."""
        return self.fleets[fleet_of(engine)].said(engine)

    def take_beats(self) -> dict[str, Any]:
        """Engine → its newest answer to a heartbeat, for those that came since the last call."""
        return {k: v for fleet in self.fleets.values() for k, v in fleet.take_beats().items()}

    def least_busy(self, among: Collection[str] | None = None) -> str | None:
        """As ``Fleet.least_busy``, over all of them."""
        chosen = [(fleet, fleet.least_busy(among)) for fleet in self.fleets.values()]
        open_calls = {name: fleet.num_open(name) for fleet, name in chosen if name is not None}
        return min(open_calls, key=open_calls.__getitem__, default=None)

    def call(
        self,
        actor: str,
        method: str,
        arguments: Mapping[str, Any],
        *,
        context: Any,
        deadline_s: float,
    ) -> bool:
        """As ``Fleet.call``."""
        fleet = self.fleets[fleet_of(actor)]
        return fleet.call(actor, method, arguments, context=context, deadline_s=deadline_s)

    @property
    def waiting(self) -> list[Any]:
        """As ``Fleet.waiting``."""
        return [reference for fleet in self.fleets.values() for reference in fleet.waiting]

    @property
    def num_exchanges(self) -> int:
        """As ``Fleet.num_exchanges``."""
        return sum(fleet.num_exchanges for fleet in self.fleets.values())

    def send(self) -> None:
        """As ``Fleet.send``."""
        for fleet in self.fleets.values():
            fleet.send()

    def poll(self) -> list[FleetEvent]:
        """As ``Fleet.poll``. ``Exhausted`` means that no fleet has an engine left."""
        events = [event for fleet in self.fleets.values() for event in fleet.poll()]
        spent = [event for event in events if isinstance(event, Exhausted)]
        if spent and any(fleet.members for fleet in self.fleets.values()):
            for event in spent:
                log.error("this fleet gets no more engines: %s", event.reason)
                events.remove(event)
        return events

    def dismiss(self, actor: str) -> tuple[Any, ...]:
        """As ``Fleet.dismiss``."""
        return self.fleets[fleet_of(actor)].dismiss(actor)

    def retire(self, actor: str, reason: str) -> None:
        """As ``Fleet.retire``."""
        self.fleets[fleet_of(actor)].retire(actor, reason)
