"""A model that is not there is told at once: nothing is asked for over the network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.completer import TransformersCompleter
from actors.local_model import require_folder
from actors.reference import TransformersScorer
from actors.sequence_classifier import SequenceClassifier
from actors.transformers_engine import TransformersEngine
from safeladder.config import ModelConfig, RolloutConfig
from safeladder.errors import SafeladderError
from safeladder.records import Message

NOWHERE = Path("some-hub/some-model")


async def complete() -> None:
    await TransformersCompleter(NOWHERE).complete([(Message("user", "hi"),)], 3)


async def classify() -> None:
    await SequenceClassifier(principle="p", path=NOWHERE, scores={"a": 1.0}).start()


async def refer() -> None:
    await TransformersScorer(NOWHERE).start()


async def generate() -> None:
    await TransformersEngine(ModelConfig(path=NOWHERE), RolloutConfig(), seed=0).start()


@pytest.mark.parametrize("start", [complete, classify, refer, generate])
def test_a_missing_model_is_named_without_asking_a_hub(
    start: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("somebody asked the network")

    monkeypatch.setattr("socket.socket.connect", connect)
    with pytest.raises(SafeladderError, match="some-hub/some-model: there is no such folder; give"):
        asyncio.run(start())


def test_a_path_that_cannot_be_looked_at_is_named() -> None:
    with pytest.raises(SafeladderError, match="file name too long; give the folder"):
        require_folder(Path("a" * 300))
