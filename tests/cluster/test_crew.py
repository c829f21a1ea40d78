"""What counts as a loaded version outside the loop: the fleet is scripted."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from actors.rollout import EngineStatus
from cluster import crew as crew_module
from cluster.crew import Crew
from cluster.fleet import Reply

from .coordinator_play import make_config
from .scripted_fleet import Call, ScriptedFleet, loaded, published


class Engines(ScriptedFleet):
    """One engine that answers each load with the same status."""

    says: Any = None

    def call(self, actor: str, method: str, arguments: Any, *, context: Any, **_: Any) -> bool:
        self.events.append(Reply(actor=actor, context=context, value=self.says))
        return super().call(actor, method, arguments, context=context)


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Crew:
    """A crew whose learner publishes version 0 at once."""
    version = published(0)
    reply = Mock(context="publish", value=(version.manifest, version.payload))
    monkeypatch.setattr(crew_module, "spawn", Mock())
    monkeypatch.setattr(crew_module, "LearnerGroup", lambda *_: Mock(poll=lambda: [reply]))
    monkeypatch.setattr(crew_module, "Fleet", lambda *_, **__: Engines("rollout-0"))
    return Crew(make_config(), fence=1)


@pytest.mark.parametrize(
    ("status", "retired"),
    [
        (loaded(0), []),
        (loaded(0, digest="", failure="a checksum differs"), ["rollout-0"]),
        (loaded(0, digest=""), ["rollout-0"]),
    ],
    ids=["loaded", "failed", "base model"],
)
def test_version_0_counts_as_loaded_only_if_its_digest_is_echoed(
    crew: Crew, status: EngineStatus, retired: list[str]
) -> None:
    engines: Any = crew.rollout.fleets["rollout"]
    engines.says = status
    crew.publish(0)
    (load,) = engines.take()
    assert isinstance(load, Call)
    assert load.method == "load_weights"
    assert engines.retired == retired
