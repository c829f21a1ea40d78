"""An engine, an environment and a role around both, for tests of conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.deliberation.dialogues import EnvironmentDialogues
from actors.lease_answers import GeneratedGroup
from actors.rendering import PromptRenderer
from actors.rollout import RolloutActor
from safeladder.environment_config import EnvironmentConfig
from safeladder.records import (
    GroupKey,
    Lease,
    Prompt,
    RolloutGroup,
)

from .conftest import (
    DictStore,
    Laboratory,
    ask,
    draw,
)

KEY = GroupKey(0, 0)
TURN = 6
FRAME = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def scripted(*turns: str) -> Prompt:
    return replace(ask("hello"), meta={"turns": list(turns)})


def settings(**changes: Any) -> EnvironmentConfig:
    whole: dict[str, Any] = {
        "kind": "scripted", "max_turn_tokens": TURN, "reply_tokens": 200, "timeout_s": 5.0,
    }  # fmt: skip
    return EnvironmentConfig(**{**whole, **changes})


class Room:
    """An engine with an environment, and a role around both."""

    def __init__(self, lab: Laboratory, path: Path, environment: Any, **changes: Any) -> None:
        self.lab, self.store = lab, DictStore()
        self.renderer = PromptRenderer(path)
        self.dialogues = EnvironmentDialogues(
            lab.engine, environment, settings(**changes), lambda: self.renderer
        )
        self.role = RolloutActor("rollout-0", lab.engine, self.store, dialogues=self.dialogues)
        lab.run(self.dialogues.start())

    def converse(self, prompt: Prompt, n: int = 2, tokens: int = 60, **more: Any) -> list[Any]:
        async def collect() -> list[Any]:
            made = self.dialogues.generate("r", prompt, draw(n, tokens, **more))
            return sorted([one async for one in made], key=lambda one: one.index)

        found: list[Any] = self.lab.run(collect())
        return found

    def lease(self, prompt: Prompt, attempt: int = 1, **changes: Any) -> Lease:
        whole = Lease(
            key=KEY, attempt=attempt, fence=1, prompt=prompt, sampling=draw(2, 60, seed=9),
            deadline_s=30.0, is_interruptible=True,
        )  # fmt: skip
        return replace(whole, **changes)

    def group(self, answer: GeneratedGroup) -> RolloutGroup:
        group: RolloutGroup = self.store.values[answer.payload]
        return group
