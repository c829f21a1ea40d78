"""The text protocol of deliberative search: what one turn of the model must look like.

::

    <think>what is known, what is missing</think>
    <search>query</search>  or  <read>id</read>  or  <answer>the answer</answer>
    <confidence>0 to 10</confidence>

All three parts in this order, none blank, nothing between them but white space, no tag within a
part. A conversation is well-formed if each turn is, and the last one, and only that, answers. Owns
the parser and the names of what can be wrong; knows neither index nor reward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from safeladder.conversation import ASSISTANT, CONVERSATION
from safeladder.records import ScoreRequest

ACTIONS: Final = ("search", "read", "answer")
_KNOWN = ("think", *ACTIONS, "confidence")
_OPENING = re.compile(r"<([a-z_]{1,20})>")
_TAG = re.compile(rf"</?(?:{'|'.join(_KNOWN)}|result|error)>")
_CONFIDENCE = re.compile(r"10|[0-9]", re.ASCII)
MAX_PARTS = 16
"""A turn with more is malformed anyway."""


class MalformedError(ValueError):
    """A turn, or a conversation, that does not follow the protocol. The message is one of a few
    short names of what is wrong."""


class SearchStep(NamedTuple):
    """One well-formed turn."""

    thought: str
    action: str
    """``search``, ``read`` or ``answer``."""
    argument: str
    """Query, document id, or the answer."""
    confidence: int
    """0 to 10."""


class Trajectory(NamedTuple):
    """A well-formed conversation."""

    steps: tuple[SearchStep, ...]

    @property
    def answer(self) -> str:
        """What it ends with."""
        return self.steps[-1].argument

    @property
    def confidence(self) -> int:
        """As stated with the answer."""
        return self.steps[-1].confidence


def read_step(text: str, actions: Sequence[str] = ACTIONS) -> SearchStep:
    """Parse one turn. Raises ``MalformedError``.

    >>> read_step("<think>easy</think> <answer>Oslo</answer> <confidence>9</confidence>")
    SearchStep(thought='easy', action='answer', argument='Oslo', confidence=9)
    >>> read_step("<think>easy</think> <answer>Oslo</answer>")
    Traceback (most recent call last):
    rewards.search_steps.MalformedError: no confidence
    """
    parts = _parts(text)
    names = [name for name, _ in parts]
    if unknown := [name for name in names if name not in ("think", "confidence", *actions)]:
        raise MalformedError("unknown action" if unknown[0] not in _KNOWN else "forbidden action")
    if names[:1] != ["think"]:
        raise MalformedError("no thought")
    chosen = [name for name in names if name in actions]
    if not chosen:
        raise MalformedError("no action")
    if len(chosen) > 1:
        raise MalformedError("several actions")
    if "confidence" not in names:
        raise MalformedError("no confidence")
    if names != ["think", chosen[0], "confidence"]:
        raise MalformedError("parts out of order")
    thought, argument, confidence = (body.strip() for _, body in parts)
    if not (thought and argument):
        raise MalformedError("blank part")
    if not _CONFIDENCE.fullmatch(confidence):
        raise MalformedError("confidence is not 0 to 10")
    return SearchStep(thought, chosen[0], argument, int(confidence))


def read_trajectory(request: ScoreRequest, actions: Sequence[str] = ACTIONS) -> Trajectory:
    """Parse all turns of the model; a sample without a conversation is one turn. Raises
    ``MalformedError``."""
    conversation = request.meta.get(CONVERSATION)
    if conversation is None:
        texts = [request.response]
    else:
        texts = [text for role, text in conversation["turns"] if role == ASSISTANT]
    steps = tuple(read_step(text, actions) for text in texts)
    if not steps or steps[-1].action != "answer":
        raise MalformedError("no answer")
    if any(step.action == "answer" for step in steps[:-1]):
        raise MalformedError("answered before the end")
    return Trajectory(steps)


def _parts(text: str) -> list[tuple[str, str]]:
    """(tag, body) of all parts, in order."""
    found: list[tuple[str, str]] = []
    place = _skip_blank(text, 0)
    while place < len(text):
        opening = _OPENING.match(text, place)
        if opening is None:
            raise MalformedError("text outside the parts")
        name = opening[1]
        end = text.find(f"</{name}>", opening.end())
        if end < 0:
            raise MalformedError("part not closed")
        body = text[opening.end() : end]
        if _TAG.search(body):
            raise MalformedError("tag within a part")
        found.append((name, body))
        if len(found) > MAX_PARTS:
            raise MalformedError("several actions")
        place = _skip_blank(text, end + len(name) + 3)
    return found


def _skip_blank(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place
