"""A learner that does not come up ends the run with a sentence."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from cluster import learner_group
from cluster.learner_group import LearnerGroup
from cluster.remote import PENDING
from cluster.role_host import RoleFailure
from safeladder.errors import RunFailedError

from .coordinator_play import make_config


@pytest.mark.parametrize(
    ("answer", "sentence", "exit_code"),
    [
        (PENDING, "did not come up within 600 s", 3),
        (
            RoleFailure(kind="ActorLost", message="killed", exit_code=1, detail=""),
            "did not come up: ActorLost: killed",
            1,
        ),
    ],
    ids=["silent", "dead"],
)
def test_a_rank_that_gives_no_address_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, answer: Any, sentence: str, exit_code: int
) -> None:
    for door in ("spawn", "submit"):
        monkeypatch.setattr(learner_group, door, Mock())
    monkeypatch.setattr(learner_group, "outcome", lambda *_: answer)
    config = make_config()
    with pytest.raises(RunFailedError, match=sentence) as caught:
        LearnerGroup(config, owner=None).start(config.model.path, None)
    assert caught.value.exit_code == exit_code
