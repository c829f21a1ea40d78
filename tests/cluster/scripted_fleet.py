"""A fleet of which a test says what happens, and what its engines say of a version."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from actors.rollout import EngineStatus
from cluster.fleet import FleetEvent, Lost
from cluster.weight_store import PublishedWeights
from safeladder.records import TensorSpec, WeightManifest
from safeladder.weight_payload import WeightPayload


class Call(NamedTuple):
    actor: str
    method: str
    arguments: Mapping[str, Any]
    context: Any


class ScriptedFleet:
    """A fleet of which a test says what happens; every call is remembered."""

    def __init__(self, *ready: str) -> None:
        self.name = "scripted"
        self.ready = list(ready)
        self.events: list[FleetEvent] = []
        self.calls: list[Call] = []
        self.retired: list[str] = []
        self.dismissed: list[str] = []
        self.size = len(ready)
        self.beats: dict[str, Any] = {}
        self.waiting: list[Any] = []

    def send(self) -> None:
        """Calls are remembered as they are queued."""

    @property
    def members(self) -> list[str]:
        return self.ready

    def poll(self) -> list[FleetEvent]:
        events, self.events = self.events, []
        return events

    def said(self, actor: str) -> EngineStatus:
        return loaded(0, name=actor)

    def take_beats(self) -> dict[str, Any]:
        beats, self.beats = self.beats, {}
        return beats

    def num_open(self, actor: str) -> int:
        return sum(call.actor == actor for call in self.calls)

    def least_busy(self, among: Collection[str] | None = None) -> str | None:
        return next((name for name in self.ready if among is None or name in among), None)

    def call(self, actor: str, method: str, arguments: Any, *, context: Any, **_: Any) -> bool:
        self.calls.append(Call(actor, method, arguments, context))
        return True

    def resize(self, size: int) -> list[str]:
        leaving, self.size = self.ready[size:][::-1], size
        return leaving

    def dismiss(self, actor: str) -> tuple[Any, ...]:
        self.dismissed.append(actor)
        self.ready.remove(actor)
        return ()

    def retire(self, actor: str, reason: str) -> None:
        self.retired.append(actor)
        self.ready.remove(actor)
        self.events.append(Lost(actor=actor, reason=reason, contexts=()))

    def close(self) -> None:
        self.ready.clear()

    def take(self) -> list[Call]:
        calls, self.calls = self.calls, []
        return calls


def published(version: int) -> PublishedWeights:
    spec = TensorSpec(name="w", dtype="float32", shape=(1,), checksum=f"{version:032x}")
    manifest = WeightManifest(version=version, fence=1, tensors=(spec,))
    return PublishedWeights(manifest=manifest, payload=WeightPayload(chunks=("weights",)))


def loaded(version: int, **changes: Any) -> EngineStatus:
    fields: dict[str, Any] = {
        "name": "rollout-0", "served_version": version,
        "digest": published(version).manifest.digest, "groups_in_flight": 0,
        "tokens_generated": 0, "busy_s": 0.0, "pid": 1,
    }  # fmt: skip
    return EngineStatus(**{**fields, **changes})
