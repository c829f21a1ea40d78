"""Conversations of several turns: the port of an environment, and what it and the engine exchange.

An environment sees each turn of the model and answers with text (a tool's output, a user's next
turn) or with the end. ``actors.deliberation`` drives the engine turn by turn and makes one
``Completion`` of all of it. Text of the environment is tokenized once, when it comes; what the
model sampled never is. What an environment knows of a conversation is its ``state``: one object
serves all conversations of an engine and keeps nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from safeladder.records import FinishReason, Message, Prompt

ASSISTANT = "assistant"
CONVERSATION = "conversation"
"""Column of ``ScoreRequest.meta`` with ``turns``, a list of [role, text], and ``facts``; a column
of the data with that name is hidden by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Where a sample of several turns stands."""

    turns: tuple[Message, ...] = ()
    """So far: the model's (role ``assistant``) and the environment's, as text."""
    state: Any = None
    """The environment's own; plain data (JSON values) if it says ``is_resumable``."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the environment tells verifiers about the whole, JSON values."""
    turn_start: int = 0
    """First token of the model's newest turn."""
    turn_end: FinishReason | None = None
    """How that turn ended: the environment is to answer. None while the model speaks."""

    @property
    def num_turns(self) -> int:
        """Turns that the model has finished."""
        return sum(role == ASSISTANT for role, _ in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTurn:
    """One turn of the model, as an environment sees it."""

    number: int
    """1 for the first."""
    text: str
    """Decoded, without special tokens."""
    is_cut: bool
    """It ran into a limit before the model ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What an environment answers."""

    text: str = ""
    state: Any = None
    """What it wants to be given with the next turn."""
    role: str | None = "user"
    """Chat role of the text: it is put into the model's chat template, between its control tokens,
    and makes none of them itself. None appends the text as it is, for environments that write the
    template's text themselves."""
    is_over: bool = False
    """Nothing is sampled after this; the text is recorded and makes no tokens."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Added to ``Conversation.facts``."""


class Environment(Protocol):
    """Answers the turns of the model. Methods are called in threads, several at a time, each under
    a deadline; what they raise fails the one sample."""

    @property
    def is_resumable(self) -> bool:
        """Whether ``state`` is plain data from which another process can go on, and a call that
        failed may be repeated. If not, leases are not interruptible and nothing is repeated."""
        ...

    def start(self) -> None:
        """Get ready (read an index). Raises ``ConfigError``."""
        ...

    def begin(self, prompt: Prompt, text: str) -> Reply:
        """Open a conversation; ``text`` is the rendered prompt. What it answers stands before the
        model's first turn, and is mostly nothing but a state."""
        ...

    def reply(self, state: Any, turn: ModelTurn) -> Reply:
        """Answer a turn."""
        ...

    def close(self) -> None:
        """Free what ``start`` took."""
        ...


class EnvironmentFailedError(RuntimeError):
    """An environment raised, hung or answered nonsense: the sample has no end, and no number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFailure:
    """One sample that its environment failed. Data: its siblings go on."""

    index: int
    detail: str
