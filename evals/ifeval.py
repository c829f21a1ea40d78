"""Files in IFEval's format: how many constraints, and how many whole instructions, are followed.

Strict is the answer as it is; loose passes if any of eight variants does, made by taking off the
first line, the last line or both, each with and without asterisks (arXiv 2311.07911). The reading
is ``reference`` unless said otherwise, and what has no outcome counts as nothing: an answer that is
missing, a rule that crashed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.held_out import Outcomes
from rewards.constraints.port import Reading
from rewards.constraints.reward import Outcomes as Met
from rewards.constraints.reward import check, reward_floor
from rewards.constraints.rows import Stated, listed, stated
from rewards.constraints.vocabulary import SOFT
from safeladder.errors import DataError
from safeladder.records import THINK_END, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One instruction of a file."""

    id: str
    prompt: str
    constraints: tuple[Stated, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What one answer met; [n] in the order of the item's constraints."""

    item: Item
    strict: Met
    loose: Met


def constraints_of(meta: Mapping[str, Any], reference: str | None = None) -> tuple[Stated, ...]:
    """The hard constraints of a row; none if it has no such columns. Raises ``ValueError``."""
    if not has_constraints(meta):
        return ()
    return stated([one for one in listed(meta, reference, "") if one["id"] not in SOFT])


def has_constraints(meta: Mapping[str, Any]) -> bool:
    """Whether a row has IFEval's columns."""
    return isinstance(meta.get("instruction_id_list"), list | tuple)


def read_items(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Item]:
    """Items of ``{prompt, instruction_id_list, kwargs, key? | id?}`` with their places. Raises
    ``DataError`` naming file and line."""
    items: dict[str, Item] = {}
    for place, row in rows:
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"{place}: column prompt: must be text that is not empty")
        try:
            constraints = constraints_of(row)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{place}: {error}") from None
        if not constraints:
            raise DataError(f"{place}: column instruction_id_list: the row has no hard constraints")
        identity = str(row.get("key", row.get("id", place.rpartition(":")[2])))
        if identity in items:
            raise DataError(f"{place}: column key: {identity!r} stands twice")
        items[identity] = Item(id=identity, prompt=prompt, constraints=constraints)
    return list(items.values())


def follow(item: Item, response: str, reading: Reading = "reference") -> Followed:
    """Check the visible part of an answer."""
    texts = loose_variants(visible(response))
    variants = [check(item.constraints, text, reading) for text in texts]
    return Followed(
        item=item,
        strict=variants[0],
        loose=tuple(_any(outcomes) for outcomes in zip(*variants, strict=True)),
    )


def visible(response: str) -> str:
    """What follows the last ``</think>``; without one, the response as it is, blanks included."""
    _, marker, rest = response.rpartition(THINK_END)
    return rest.strip() if marker else response


def loose_variants(response: str) -> tuple[str, ...]:
    """The answer, then what is left without first line, last line or both, each also without
    asterisks.

    >>> loose_variants("Sure!\\n*tea*")
    ('Sure!\\n*tea*', 'Sure!\\ntea', '*tea*', 'tea', 'Sure!', 'Sure!', '', '')
    """
    lines = response.split("\n")
    parts = ("\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1]))
    kept = (response, *(part.strip() for part in parts))
    return tuple(text for one in kept for text in (one, one.replace("*", "")))


def all_met(outcomes: Met) -> bool | None:
    """Whether an instruction is followed as a whole: not if one constraint is missed; None if that
    hangs on one without an outcome."""
    if False in outcomes:
        return False
    return None if None in outcomes else True


def item_of(prompt: Prompt) -> Item | None:
    """The item of a prompt of a run; None if it has no hard constraints that can be read."""
    try:
        constraints = constraints_of(prompt.meta, prompt.reference)
    except (ValueError, TypeError, KeyError):
        return None  # its verdicts say what is wrong with it
    text = prompt.messages[-1].content
    return Item(id=prompt.id, prompt=text, constraints=constraints) if constraints else None


def outcomes_by_prompt(
    items: Iterable[tuple[Item, str]], reading: Reading = "reference"
) -> Outcomes:
    """Metric → item → share, for the table before and after: constraints met and instructions
    followed, both strict and loose."""
    outcomes: Outcomes = {}
    for item, response in items:
        followed = follow(item, response, reading)
        for suffix, met in (("", followed.strict), ("_loose", followed.loose)):
            _add(outcomes, f"constraints_met{suffix}", item, _share(met))
            whole = all_met(met)
            _add(
                outcomes, f"instructions_met{suffix}", item, None if whole is None else float(whole)
            )
    return outcomes


def outcomes_by_group(followed: Iterable[Followed]) -> Outcomes:
    """Metric → item → share of the constraints met strictly, for each group of types."""
    outcomes: Outcomes = {}
    for one in followed:
        groups: dict[str, Met] = {}
        for stated_, outcome in zip(one.item.constraints, one.strict, strict=True):
            group = stated_.id.partition(":")[0]
            groups[group] = (*groups.get(group, ()), outcome)
        for group, met in groups.items():
            _add(outcomes, f"constraints_met/{group}", one.item, _share(met))
    return outcomes


def mean_floor(items: Sequence[Item]) -> float:
    """What junk would earn as reward, on average: texts that say nothing, in the hardened
    reading. Raises ``ValueError`` without items."""
    if not items:
        raise ValueError("no items, no floor")
    return sum(reward_floor(item.constraints, "hardened", 1.0) for item in items) / len(items)


def type_table(followed: Sequence[Followed]) -> dict[str, dict[str, int]]:
    """Type → how many were judged, met strictly, met loosely, and had no outcome."""
    table: dict[str, Counter[str]] = {}
    for one in followed:
        for stated_, strict, loose in zip(one.item.constraints, one.strict, one.loose, strict=True):
            counts = table.setdefault(stated_.id, Counter(judged=0, strict=0, loose=0, masked=0))
            counts["masked" if strict is None else "judged"] += 1
            counts["strict"] += strict is True
            counts["loose"] += loose is True
    return {name: dict(table[name]) for name in sorted(table)}


def _add(outcomes: Outcomes, metric: str, item: Item, value: float | None) -> None:
    if value is not None:
        outcomes.setdefault(metric, {})[item.id] = value


def _share(met: Met) -> float | None:
    known = [outcome for outcome in met if outcome is not None]
    return sum(known) / len(known) if known else None


def _any(outcomes: Sequence[bool | None]) -> bool | None:
    return True if True in outcomes else (None if None in outcomes else False)
