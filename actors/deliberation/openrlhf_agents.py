"""Agents written for OpenRLHF (``openrlhf.utils.agent``), run unedited as environments.

An agent is told what OpenRLHF tells it: ``reset({"observation", "label"})``, then for each turn
``step({"observation_text", "action_text", "label", "sampling_params"})``, all text, the prompt as
the chat template renders it. What it returns as ``environment_feedback`` is appended as it is; the
sum of ``rewards``, the last ``scores`` and ``extra_logs`` become facts, for
``rewards.environment``.

Different from OpenRLHF: sampling is the run's, so an agent that changes ``sampling_params`` fails
its sample; ``reset`` may add to the prompt, not change it; images are not passed; an executor with
an ``execute`` of its own is refused. An agent is a live object: its conversations cannot be
continued elsewhere, so leases are not interruptible, and no call is repeated.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from safeladder.conversation import ModelTurn, Reply
from safeladder.errors import ConfigError
from safeladder.records import Prompt

MODULE = "openrlhf.utils.agent"


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Session:
    """One conversation: the agent, its own event loop, and what it has seen."""

    agent: Any
    loop: asyncio.AbstractEventLoop
    label: str | None
    observation: str
    reward: float = 0.0


def is_agent(cls: type) -> bool:
    """Whether a class is written for OpenRLHF."""
    return any(base.__module__ == MODULE for base in cls.__mro__)


class OpenRlhfAgents:
    """``Environment`` around an agent class, or an executor class that names one."""

    is_resumable = False

    def __init__(self, cls: type, key: str, sampling: Mapping[str, float]) -> None:
        bases = {base.__name__: base for base in cls.__mro__ if base.__module__ == MODULE}
        if (executor := bases.get("MultiTurnAgentExecutor")) is not None:
            if cls.execute is not executor.execute:  # type: ignore[attr-defined]
                raise ConfigError(
                    f"{key}: {cls.__qualname__} has an `execute` of its own, which drives "
                    "OpenRLHF's engine; name an agent with `reset` and `step`"
                )
            cls = cls().agent_instance_cls
        elif "AgentInstanceBase" not in bases:
            raise ConfigError(
                f"{key}: {cls.__qualname__} is no multi-turn agent of OpenRLHF; name an "
                "AgentInstanceBase, or a MultiTurnAgentExecutor"
            )
        self._cls = cls
        self._sampling = dict(sampling)

    def start(self) -> None:
        """Nothing to prepare: each conversation has an agent of its own."""

    def close(self) -> None:
        """Nothing to free."""

    def begin(self, prompt: Prompt, text: str) -> Reply:
        """``reset``, with the rendered prompt as the observation."""
        loop = asyncio.new_event_loop()
        try:
            session = _Session(self._make(loop), loop, prompt.reference, text)
        except BaseException:
            loop.close()
            raise
        weakref.finalize(session, loop.close)  # however the conversation ends, or fails to begin
        told = {"observation": text, "label": prompt.reference}
        observation = loop.run_until_complete(session.agent.reset(told))["observation"]
        if not observation.startswith(text):
            raise ValueError("reset changes the prompt; it may only add to it")
        session.observation = observation
        return Reply(text=observation[len(text) :], role=None, state=session)

    def reply(self, state: Any, turn: ModelTurn) -> Reply:
        """``step``."""
        session: _Session = state
        sampling = SimpleNamespace(**self._sampling)
        told = {
            "observation_text": session.observation,
            "action_text": turn.text,
            "label": session.label,
            "sampling_params": sampling,
        }
        result = session.loop.run_until_complete(session.agent.step(told))
        if vars(sampling) != self._sampling or result.get("sampling_params") not in (
            None,
            sampling,
        ):
            raise ValueError("step changes sampling_params; how is sampled is the run's business")
        session.reward += _number(result["rewards"])
        scores = result.get("scores")
        facts = {
            "reward": session.reward,
            "scores": session.reward if scores is None else _number(scores),
            "extra_logs": {k: _plain(v) for k, v in result.get("extra_logs", {}).items()},
        }
        is_over = bool(result["done"])
        feedback = result["environment_feedback"]
        session.observation += turn.text + feedback
        return Reply(text=feedback, role=None, state=session, is_over=is_over, facts=facts)

    def _make(self, loop: asyncio.AbstractEventLoop) -> Any:
        """An instance; OpenRLHF's documented example has a coroutine function as ``__init__``."""
        cls: Any = self._cls
        if not inspect.iscoroutinefunction(cls.__init__):
            return cls()
        agent = cls.__new__(cls)
        loop.run_until_complete(cls.__init__(agent))
        return agent


def _number(value: Any) -> float:
    return float(value.item() if hasattr(value, "item") else value)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
