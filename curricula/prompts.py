"""From rows to prompts, and the plain order in which they are asked.

A row is a map (see ``curricula.rows``): ``{id?, prompt | messages, reference?, route?, images?,
lang?, meta?}``. Rows of TRL (``messages``, ``ground_truth``, ``answer``, ``chosen``) and of verl
(``reward_model.ground_truth``, ``data_source``, ``ability``) pass unchanged. A ``label`` column is
the route if every value of it in its file is in the route table, and the reference if none is. All
columns that are not used stay in ``meta`` and reach the verifier.

This module knows nothing of what is done with a prompt.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curricula.rows import MAX_LEVELS as MAX_LEVELS
from curricula.rows import Row
from curricula.rows import read_rows as read_rows
from safeladder.data_config import SourceConfig
from safeladder.errors import DataError
from safeladder.images import IMAGE_MARK
from safeladder.records import GroupKey, Message, Prompt

REFERENCE_COLUMNS = ("reference", "ground_truth", "answer", "chosen")
"""The first of these that a row has is its reference; the others stay in ``meta``."""
ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak. Chat templates write any other name down as it is, and the model has never seen
it."""


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
    sources: Sequence[Path | SourceConfig],
    routes: Collection[str],
    system_prompt: str | None = None,
) -> list[Prompt]:
    """All rows of all sources, in order. ``system_prompt`` is put before rows without a system
    turn.

    Raises ``DataError``, which names file, line, column and the way out.
    """
    return list(chain.from_iterable(load_sources(sources, routes, system_prompt)))


def load_sources(
    sources: Sequence[Path | SourceConfig],
    routes: Collection[str],
    system_prompt: str | None = None,
) -> list[list[Prompt]]:
    """As ``load_prompts``, source by source. No row is held beside its prompt."""
    loaded: list[list[Prompt]] = []
    numbers: dict[str, int] = {}
    for source in sources:
        own: list[Prompt] = []
        for place, prompt in placed_prompts(source, routes, system_prompt):
            if (first := numbers.get(prompt.id)) is not None:
                every = (placed_prompts(one, routes, system_prompt) for one in sources)
                where, _ = next(islice(chain.from_iterable(every), first, None))
                raise DataError(
                    f"{place}: column id: {prompt.id!r} is also the id of {where}; "
                    "remove a row or change its id (without one it is a hash of the content)"
                )
            numbers[prompt.id] = len(numbers)
            own.append(prompt)
        loaded.append(own)
    return loaded


def placed_prompts(
    source: Path | SourceConfig, routes: Collection[str], system_prompt: str | None
) -> Iterator[tuple[str, Prompt]]:
    """(place, prompt) for each row that the source takes, at least one. Raises ``DataError``."""
    labels = source.labels if isinstance(source, SourceConfig) else ()
    column = _LabelColumn(routes)
    is_empty = True
    for place, row in read_rows(source):
        if labels and _named_route(row, routes, labels) not in labels:
            continue
        is_empty = False
        prompt = _prompt(place, row, routes, column.is_route(place, row), system_prompt)
        yield place, _anchored(prompt, source) if prompt.images else prompt
    if is_empty:
        name = source.place if isinstance(source, SourceConfig) else source
        raise DataError(f"{name}: no row has one of the labels {_names(labels)}; check `labels`")


def _anchored(prompt: Prompt, source: Path | SourceConfig) -> Prompt:
    """Relative paths of images begin at the folder of the file that names them."""
    file = source.path if isinstance(source, SourceConfig) else source
    if file is None:
        return prompt
    return replace(prompt, images=tuple(str(file.parent / image) for image in prompt.images))


def _named_route(row: Row, routes: Collection[str], labels: Collection[str]) -> str | None:
    """The route that a row names, or the only one that there is."""
    if row.get("route") is not None:
        return str(row["route"])
    for column in ("label", "data_source", "ability"):
        if _is_route(row.get(column), labels):
            return str(row[column])
    return next(iter(routes)) if len(routes) == 1 else None


class _LabelColumn:
    """Whether the ``label`` column of one source holds routes: its first value says so, and all
    others must agree."""

    def __init__(self, routes: Collection[str]) -> None:
        self._routes = routes
        self._holds_routes = False
        self._first: tuple[str, Any] | None = None
        """Place and value."""

    def is_route(self, place: str, row: Row) -> bool:
        """Also for a row without a label. Raises ``DataError`` if the rows disagree."""
        label = row.get("label")
        if label is None:
            return self._holds_routes
        is_one = _is_route(label, self._routes)
        if self._first is None:
            self._first, self._holds_routes = (place, label), is_one
        elif is_one != self._holds_routes:
            place, label = (place, label) if self._holds_routes else self._first
            raise DataError(
                f"{place}: column label: {label!r} is not a route ({_names(self._routes)}), but "
                "other rows have routes there; name the column `route` or `reference`"
            )
        return self._holds_routes


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
        images=take_images(place, rest),
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
            content = "".join(_text_of(place, part) for part in content)
        if isinstance(role, str) and isinstance(content, str):
            if role not in ROLES:
                raise DataError(f"{place}: role {role!r} is none of {', '.join(ROLES)}")
            return Message(role, content)
    raise DataError(f'{place}: a message is {{"role": "user", "content": "…"}}')


def _text_of(place: str, part: Row) -> str:
    if part.get("type") == "image":
        return IMAGE_MARK
    if isinstance(text := part.get("text"), str):
        return text
    raise DataError(
        f"{place}: a part of a message is text or an image (with its path in the column images), "
        f"not {part.get('type')!r}; remove the row"
    )


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


def take_images(place: str, rest: Row) -> tuple[str, ...]:
    """Column ``images``, taken out of ``rest``: paths. Raises ``DataError``."""
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
