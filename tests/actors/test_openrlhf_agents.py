"""Agents in the form that OpenRLHF documents, through a real engine with a tiny model."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

from actors.deliberation.building import build_environment
from actors.deliberation.dialogues import EnvironmentDialogues
from actors.deliberation.openrlhf_agents import is_agent
from actors.rendering import PromptRenderer
from actors.transformers_engine import TransformersEngine
from safeladder.config import ModelConfig
from safeladder.conversation import SampleFailure
from safeladder.errors import ConfigError
from safeladder.records import Completion
from tests.cluster.checked_setup import build
from tests.tiny_model import tiny_model, tiny_tokenizer

from .conftest import Laboratory, ask, draw, rollout_config


class AgentInstance(AgentInstanceBase):  # type: ignore[misc]
    """Asks to try again once, then says whether the answer was right."""

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # as their example has it
        self.step_idx = 0
        self.max_steps = 1

    async def reset(self, states: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"observation": states["observation"]}

    async def step(self, states: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        assert states["observation_text"].startswith("<|im_start|>user\nhello")
        assert states["label"] == "forty-two"
        done = self.step_idx >= self.max_steps
        reward = torch.ones(1).float() if done else torch.tensor(0)
        feedback = (
            "\n\nHuman: [CORRECT]\n</s>"
            if done
            else "\n\nHuman: [INCORRECT]\nPlease try again.\n</s>\n\nAssistant: "
        )
        self.step_idx += 1
        return {
            "rewards": reward,
            "scores": reward,
            "environment_feedback": feedback,
            "done": done,
            "sampling_params": states.get("sampling_params"),
            "extra_logs": {"dummy_scores": reward},
        }


class AgentExecutor(MultiTurnAgentExecutor):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(AgentInstance)


class OwnExecution(AgentExecutor):
    async def execute(self, *args: Any, **kwargs: Any) -> None: ...


class Hotter(AgentInstance):
    async def step(self, states: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        states["sampling_params"].temperature = 2.0
        return await super().step(states)


class Prefixed(AgentInstance):
    async def reset(self, states: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"observation": states["observation"] + "Let me think."}


class Rewritten(AgentInstance):
    async def reset(self, states: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"observation": "something else"}


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[Laboratory]:
    import asyncio

    engine = TransformersEngine(
        ModelConfig(path=model_path, dtype="float32"), rollout_config(), seed=0
    )
    with asyncio.Runner() as runner:
        lab = Laboratory(engine, runner, {0: tiny_model(tiny_tokenizer())})
        lab.run(engine.start())
        yield lab
        lab.run(engine.close())


def converse(
    lab: Laboratory, model_path: Path, tmp_path: Path, cls: type
) -> list[Completion | SampleFailure]:
    path = f"{cls.__module__}:{cls.__qualname__}"
    config = build(
        tmp_path, rollout__environment={"path": path, "max_turn_tokens": 6, "reply_tokens": 200}
    )
    environment, settings = build_environment(config), config.rollout.environment
    assert settings is not None
    assert not environment.is_resumable
    dialogues = EnvironmentDialogues(
        lab.engine, environment, settings, lambda: PromptRenderer(model_path)
    )

    async def collect() -> list[Any]:
        await dialogues.start()
        prompt = replace(ask("hello"), reference="forty-two")
        made = [one async for one in dialogues.generate("r", prompt, draw(2, 60))]
        return sorted(made, key=lambda one: one.index)

    found: list[Completion | SampleFailure] = lab.run(collect())
    return found


def test_an_agent_in_their_documented_form_runs_unedited(
    engine: Laboratory, model_path: Path, tmp_path: Path
) -> None:
    renderer = PromptRenderer(model_path)
    for completion in converse(engine, model_path, tmp_path, AgentExecutor):
        assert isinstance(completion, Completion)
        assert completion.finish_reason == "stop"
        assert completion.loss_mask is not None
        told = completion.tokens[completion.loss_mask == 0]
        assert renderer.decode_all(np.asarray(told)) == (
            "\n\nHuman: [INCORRECT]\nPlease try again.\n</s>\n\nAssistant: "
        )
        talk = completion.conversation
        assert talk is not None
        assert [role for role, _ in talk.turns] == [
            "assistant", "environment", "assistant", "environment",
        ]  # fmt: skip
        assert talk.facts == {"reward": 1.0, "scores": 1.0, "extra_logs": {"dummy_scores": [1.0]}}
        assert talk.state is None, "the live agent stays behind"


def test_what_reset_adds_stands_before_the_first_turn_and_is_masked_out(
    engine: Laboratory, model_path: Path, tmp_path: Path
) -> None:
    (completion, _) = converse(engine, model_path, tmp_path, Prefixed)
    assert isinstance(completion, Completion)
    assert completion.loss_mask is not None
    size = len("Let me think.")
    assert not completion.loss_mask[:size].any()
    assert completion.loss_mask[size]
    assert PromptRenderer(model_path).decode(completion.tokens[:size]) == "Let me think."


@pytest.mark.parametrize(
    ("cls", "said"), [(Hotter, "changes sampling_params"), (Rewritten, "reset changes the prompt")]
)
def test_what_cannot_be_done_fails_the_sample(
    engine: Laboratory, model_path: Path, tmp_path: Path, cls: type, said: str
) -> None:
    for made in converse(engine, model_path, tmp_path, cls):
        assert isinstance(made, SampleFailure)
        assert said in made.detail


class Endless(AgentInstance):
    async def step(self, states: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {**await super().step(states), "done": False}


class Hopeless(AgentInstance):
    async def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no")


@pytest.mark.parametrize("cls", [AgentInstance, Endless, Hopeless, Hotter, Rewritten])
def test_the_event_loop_of_an_agent_ends_with_its_conversation(
    engine: Laboratory,
    model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cls: type,
) -> None:
    import asyncio

    loops, new = [], asyncio.new_event_loop

    def counted() -> asyncio.AbstractEventLoop:
        loops.append(new())
        return loops[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", counted)
    converse(engine, model_path, tmp_path, cls)
    gc.collect()
    assert loops
    assert all(loop.is_closed() for loop in loops)


def test_an_executor_of_its_own_is_refused(tmp_path: Path) -> None:
    assert is_agent(AgentInstance)
    assert not is_agent(dict)
    path = f"{__name__}:OwnExecution"
    with pytest.raises(ConfigError, match="has an `execute` of its own"):
        build_environment(build(tmp_path, rollout__environment={"path": path}))
    environment = {"path": f"{__name__}:AgentExecutor", "options": {"a": 1}}
    with pytest.raises(ConfigError, match="agents of OpenRLHF take none"):
        build_environment(build(tmp_path, rollout__environment=environment))
