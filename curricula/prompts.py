"""Prompt files and the order in which their rows are asked.

A row is one JSON object in one line: ``{id?, prompt | messages, reference?, route?, images?, lang?,
meta?}``. Rows of TRL (``messages``, ``ground_truth``, ``answer``, ``chosen``) and of verl
(``reward_model.ground_truth``, ``data_source``, ``ability``) pass unchanged. A ``label`` column is
the route if every value of it in its file is in the route table, and the reference if none is. All
columns that are not used stay in ``meta`` and reach the verifier.

This module knows nothing of what is done with a prompt.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from safeladder.errors import DataError
from safeladder.paths import PathError, read_bytes
from safeladder.records import GroupKey, Message, Prompt

Row = dict[str, Any]

_HALF_PAIR = re.compile("[\ud800-\udfff]")
MAX_LEVELS = 16
"""Levels of nesting in ``meta``: what a call to a verifier service can carry."""
REFERENCE_COLUMNS = ("reference", "ground_truth", "answer", "chosen")
"""The first of these that a row has is its reference; the others stay in ``meta``."""


class PromptOrder:
    """Walks through the prompts pass after pass; each pass has its own order if shuffled."""

    def __init__(self, prompts: Sequence[Prompt], seed: int, shuffle: bool) -> None:
        if not prompts:
            raise ValueError("an order needs at least one prompt")
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle

    def prompt(self, key: GroupKey) -> Prompt:
        """The prompt at a place. Raises ``IndexError`` past the end of a pass."""
        if not self._shuffle:
            return self._prompts[key.ordinal]
        order = epoch_permutation(self._seed, key.epoch, len(self._prompts))
        return self._prompts[int(order[key.ordinal])]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all that decides which place asks what: two orders with the same digest
        give every ``GroupKey`` the same prompt."""
        digest = hashlib.sha256(f"{self._seed if self._shuffle else None}".encode())
        for prompt in self._prompts:
            turns = [(message.role, message.content) for message in prompt.messages]
            digest.update(json.dumps([prompt.id, turns, prompt.images]).encode())
        return digest.hexdigest()

    def next_key(self, key: GroupKey | None) -> GroupKey:
        """The place after ``key``; None asks for the first."""
        if key is None:
            return GroupKey(0, 0)
        if key.ordinal + 1 < len(self._prompts):
            return GroupKey(key.epoch, key.ordinal + 1)
        return GroupKey(key.epoch + 1, 0)


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, num_prompts: int) -> npt.NDArray[np.intp]:
    """[num_prompts] order of one shuffled pass, a pure function of its arguments.

    It is taken from the raw stream of a Philox generator, which numpy keeps stable over releases;
    ``Generator.permutation`` makes no such promise.
    """
    stream = np.random.Philox(np.random.SeedSequence((seed, epoch)))
    return np.argsort(stream.random_raw(num_prompts), kind="stable")


def load_prompts(
    paths: Sequence[Path], routes: Collection[str], system_prompt: str | None = None
) -> list[Prompt]:
    """All rows of all files, in order. ``system_prompt`` is put before rows without a system turn.

    Raises ``DataError``, which names file, line, column and the way out.
    """
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    for path in paths:
        rows = list(read_rows(path))
        label_is_route = _label_is_route(rows, routes)
        for place, row in rows:
            prompt = _prompt(place, row, routes, label_is_route, system_prompt)
            if prompt.id in places:
                raise DataError(
                    f"{place}: column id: {prompt.id!r} is also the id of {places[prompt.id]}; "
                    "remove a row or change its id (without one it is a hash of the content)"
                )
            places[prompt.id] = place
            prompts.append(prompt)
    return prompts


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(``file:line``, JSON object) for each line that is not blank. Raises ``DataError``."""
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise DataError(f"{path}: cannot be read (no such file); check `data`") from None
    except PathError as error:
        raise DataError(f"{path}: cannot be read ({error}); check `data`") from None
    lines = data.split(b"\n")
    if not data.strip():
        raise DataError(f"{path}: the file is empty; it needs one JSON object in each line")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}:{number}", _parse(f"{path}:{number}", line, cut=number == len(lines))


def _parse(place: str, line: bytes, cut: bool) -> Row:
    """``cut``: no line feed follows; if the row does not parse, it was not written whole."""
    try:
        row = _DECODER.decode(line.decode("utf-8-sig"))
    except _TwiceError as error:
        raise DataError(
            f"{place}: the key {error.key!a} stands twice; remove or rename one of the two"
        ) from None
    except RecursionError:
        raise DataError(
            f"{place}: is nested deeper than {MAX_LEVELS} levels; write the inner part as text"
        ) from None
    except ValueError as error:
        if cut:
            raise DataError(
                f"{place}: the last line is cut off in the middle of a row; copy the file again or "
                f"remove the line ({error})"
            ) from None
        raise DataError(f"{place}: is not JSON ({error}); write one object in one line") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: holds a {type(row).__name__}; each line must be a JSON object")
    for column, value in row.items():
        if fault := _fault(column, 0) or _fault(value, 1 if column == "meta" else 2):
            raise DataError(f"{place}: column {ascii(column)[1:-1]}: {fault}")
    return row


def _fault(value: Any, level: int) -> str | None:
    """What in a JSON value cannot travel to a verifier; None if all of it can. ``level`` counts
    from the outermost map of ``meta``."""
    inner = [(value, level)]
    while inner:
        value, level = inner.pop()
        match value:
            case str() if _HALF_PAIR.search(value):
                return "has half of a surrogate pair, which is no text; write the whole character"
            case float() if not math.isfinite(value):
                return "has a number that is too large; write it as text"
            case int() if not -(2**63) <= value < 2**64:
                return "has a number of more than 64 bits; write it as text"
            case dict() | list() if level > MAX_LEVELS:
                return f"is nested deeper than {MAX_LEVELS} levels; write the inner part as text"
            case dict():
                inner += [(part, level + 1) for pair in value.items() for part in pair]
            case list():
                inner += [(part, level + 1) for part in value]
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


class _TwiceError(ValueError):
    """An object has a key twice; the last one would win without a word."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _label_is_route(rows: Sequence[tuple[str, Row]], routes: Collection[str]) -> bool:
    """Whether the ``label`` column of one file holds routes. Raises if only part of it does."""
    labels = [(place, row["label"]) for place, row in rows if row.get("label") is not None]
    others = [(place, label) for place, label in labels if not _is_route(label, routes)]
    if others and len(others) < len(labels):
        place, label = others[0]
        raise DataError(
            f"{place}: column label: {label!r} is not a route ({_names(routes)}), but other rows "
            "have routes there; name the column `route` or `reference`"
        )
    return bool(labels) and not others


def _prompt(
    place: str, row: Row, routes: Collection[str], label_is_route: bool, system_prompt: str | None
) -> Prompt:
    content = json.dumps(row, sort_keys=True, ensure_ascii=False)
    rest = {name: value for name, value in row.items() if value is not None}
    identity = rest.pop("id", None)
    messages = take_messages(place, rest)
    route = _take_route(place, rest, routes, label_is_route)
    if system_prompt is not None and all(message.role != "system" for message in messages):
        messages = (Message("system", system_prompt), *messages)
    return Prompt(
        id=str(identity)
        if identity is not None
        else hashlib.sha256(content.encode()).hexdigest()[:16],
        messages=messages,
        route=route,
        reference=_take_reference(place, rest, label_is_route),
        images=_take_images(place, rest),
        lang=str(rest.pop("lang", "en")),
        meta=_take_meta(place, rest),
    )


def _take_route(place: str, rest: Row, routes: Collection[str], label_is_route: bool) -> str:
    if "route" in rest:
        route = rest.pop("route")
        if not _is_route(route, routes):
            close = difflib.get_close_matches(str(route), routes, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"routes are {_names(routes)}"
            raise DataError(f"{place}: column route: {route!r} is not in `routes`; {hint}")
        return str(route)
    if label_is_route and "label" in rest:
        return str(rest.pop("label"))
    for column in ("data_source", "ability"):
        if _is_route(rest.get(column), routes):
            return str(rest[column])
    if len(routes) == 1:
        return next(iter(routes))
    raise DataError(f"{place}: column route is missing; give one of {_names(routes)}")


def take_messages(place: str, rest: Row) -> tuple[Message, ...]:
    """Column ``prompt`` or ``messages``, taken out of ``rest``. Raises ``DataError``."""
    column = "prompt" if "prompt" in rest else "messages"
    turns = rest.pop(column, None)
    if turns is None:
        raise DataError(f"{place}: column prompt is missing; give a string or a list of messages")
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{place}: column {column}: must be a string or a list of messages")
    messages = tuple(_message(f"{place}: column {column}[{i}]", t) for i, t in enumerate(turns))
    if not messages[-1].content.strip():
        raise DataError(f"{place}: column {column}: the last message is empty; remove the row")
    return messages


def _message(place: str, turn: Any) -> Message:
    if isinstance(turn, dict):
        role, content = turn.get("role"), turn.get("content")
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            content = "".join(str(part.get("text", "")) for part in content)
        if isinstance(role, str) and isinstance(content, str):
            return Message(role, content)
    raise DataError(f'{place}: a message is {{"role": "user", "content": "…"}}')


def _take_reference(place: str, rest: Row, label_is_route: bool) -> str | None:
    columns = REFERENCE_COLUMNS if label_is_route else (*REFERENCE_COLUMNS, "label")
    for column in columns:
        if column in rest:
            value = rest.pop(column)
            if column == "chosen" and isinstance(value, list) and value:
                return _message(f"{place}: column chosen[-1]", value[-1]).content
            return _text(value)
    reward_model = rest.get("reward_model")
    if isinstance(reward_model, dict) and reward_model.get("ground_truth") is not None:
        return _text(reward_model["ground_truth"])
    return None


def _take_images(place: str, rest: Row) -> tuple[str, ...]:
    images = rest.pop("images", ())
    if isinstance(images, list):
        images = [i.get("path", i.get("image")) if isinstance(i, dict) else i for i in images]
    if not isinstance(images, list | tuple) or not all(isinstance(i, str) for i in images):
        raise DataError(f"{place}: column images: must be a list of paths")
    return tuple(images)


def _take_meta(place: str, rest: Row) -> Row:
    meta = rest.pop("meta", {})
    if not isinstance(meta, dict):
        raise DataError(f"{place}: column meta: must be an object, not {meta!r}")
    if twice := meta.keys() & rest.keys():
        raise DataError(f"{place}: column {min(twice)} also stands in meta; remove one of the two")
    return {**meta, **rest}


def _is_route(value: Any, routes: Collection[str]) -> bool:
    return isinstance(value, str) and value in routes


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _names(routes: Collection[str]) -> str:
    return ", ".join(sorted(routes))
