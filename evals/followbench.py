"""Files in FollowBench's format: levels 1 to 5 of an instruction, each adding one constraint.

======  ============================================================================================
HSR     share of the answers of a level that satisfy all its constraints
SSR     mean share of satisfied constraints of the answers of a level
CSL     mean number of consecutive levels, from 1, that are satisfied as a whole
======  ============================================================================================

(arXiv 2310.20410.) The constraints are not listed in the data, only implied by neighbouring levels:
a judge sees the whole path and says YES or NO for each. Only YES counts. A reply that does not
parse has no outcome and is never a number; judge text is read by a pattern, never evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evals.followbench_rules import passes_level, scored_by_rule
from evals.intervals import wilson
from safeladder.errors import DataError

LEVELS = (1, 2, 3, 4, 5)
MAX_REPLY_CHARS = 20_000
_LIST = re.compile(r"""\[\s*(?:(['"])(?:YES|NO)\1\s*(?:,\s*|(?=\])))+\]""")
_WORD = re.compile(r"""(['"])(YES|NO)\1""")
_DESCRIBED = {
    "content": "content constraint",
    "situation": "constraint that describes a situation",
    "style": "style constraint",
    "format": "format constraint",
}


class ItemKey(NamedTuple):
    """``example_id`` begins anew in each file."""

    file: str
    example_id: int
    level: int

    def __str__(self) -> str:
        return f"{self.file}/{self.example_id}/{self.level}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evolution:
    """One instruction and its five harder forms."""

    file: str
    """Kind of the constraints: the file's name up to ``_constraints``."""
    example_id: int
    source: str
    instructions: tuple[str, ...]
    """[6] levels 0 to 5; level 0 may be empty."""
    targets: tuple[str, ...]
    """[6], mostly empty."""

    @property
    def has_rule(self) -> bool:
        """Whether a rule scores it."""
        return scored_by_rule(self.file, self.source, self.example_id)

    def key(self, level: int) -> ItemKey:
        """The key of one level."""
        return ItemKey(self.file, self.example_id, level)


Satisfied = tuple[bool, ...]
"""[level] one for each constraint of an answer; a rule says the same of all of them."""
Scores = Mapping[ItemKey, Satisfied | None]
"""None is unscored."""


def read_evolutions(file: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Evolution]:
    """Groups of six levels. Raises ``DataError`` naming file and line."""
    groups: dict[int, dict[int, tuple[str, Mapping[str, Any]]]] = {}
    for place, row in rows:
        example, level, text = row.get("example_id"), row.get("level"), row.get("instruction")
        if not isinstance(example, int) or not isinstance(level, int) or level not in range(6):
            raise DataError(
                f"{place}: needs example_id and a level from 0 to 5, got level {level!r}"
            )
        if not isinstance(text, str) or (level > 0 and not text.strip()):
            raise DataError(f"{place}: column instruction: must be text that is not empty")
        if level in groups.setdefault(example, {}):
            raise DataError(f"{place}: level {level} of example {example} stands twice")
        groups[example][level] = (place, row)
    evolutions = []
    for example, levels in groups.items():
        place, first = next(iter(levels.values()))
        if missing := sorted(set(range(6)) - set(levels)):
            raise DataError(f"{place}: example {example} has no level {missing[0]}")
        path = [levels[level][1] for level in range(6)]
        evolutions.append(
            Evolution(
                file=file,
                example_id=example,
                source=str(first.get("source", "")),
                instructions=tuple(row["instruction"] for row in path),
                targets=tuple(str(row.get("target") or "") for row in path),
            )
        )
    return evolutions


def judge_question(evolution: Evolution, level: int, answer: str) -> str:
    """What a judge is asked about the answer to one level: the path, the answer, the form of the
    reply."""
    kind = _DESCRIBED.get(evolution.file, "constraint")
    parts = [f"An instruction was made harder step by step. Each step added one {kind}."]
    parts.append(f"## First instruction\n{evolution.instructions[0] or '(nothing)'}")
    parts += [
        f"## After step {step}\n{evolution.instructions[step]}" for step in range(1, level + 1)
    ]
    parts.append(f"## Answer to the instruction after step {level}\n{answer}")
    example = ", ".join(["'YES'", "'NO'", "'YES'", "'YES'", "'NO'"][:level])
    parts.append(
        f"## Your task\nSay in a few words what each of the {level} steps added. Then decide for "
        "each, in order, whether the answer satisfies what it added. Your last line is a list of "
        f"exactly {level} words, each 'YES' or 'NO', such as [{example}], and nothing else."
    )
    return "\n\n".join(parts)


def read_reply(reply: str, level: int) -> Satisfied | None:
    """The list in the last line that is not blank; None if it is not one of ``level`` words.

    >>> read_reply("The tone fits.\\n['YES', 'NO']", 2), read_reply("I think so", 1)
    ((True, False), None)
    """
    lines = [line for line in reply[-MAX_REPLY_CHARS:].splitlines() if line.strip()]
    found = _LIST.search(lines[-1]) if lines else None
    words = [match[2] for match in _WORD.finditer(found[0])] if found else []
    return tuple(word == "YES" for word in words) if len(words) == level else None


def rule_score(evolution: Evolution, level: int, answer: str) -> Satisfied:
    """All or none of a level's constraints, by the item's rule."""
    passed = passes_level(
        evolution.file,
        evolution.source,
        evolution.example_id,
        level,
        evolution.targets[level],
        answer,
    )
    return (passed,) * level


def level_table(scores: Scores) -> list[dict[str, Any]]:
    """For each level: answers, scored ones, HSR with Wilson's interval, SSR."""
    table = []
    for level in LEVELS:
        of_level = [satisfied for key, satisfied in scores.items() if key.level == level]
        known = [satisfied for satisfied in of_level if satisfied is not None]
        row: dict[str, Any] = {"level": level, "answers": len(of_level), "scored": len(known)}
        if known:
            hard = sum(all(satisfied) for satisfied in known)
            row["hsr"] = hard / len(known)
            row["hsr_ci95"] = wilson(hard, len(known))
            row["ssr"] = sum(sum(satisfied) / level for satisfied in known) / len(known)
        table.append(row)
    return table


def consecutive_levels(scores: Scores) -> tuple[float | None, int, int]:
    """(CSL, groups that it is taken over, groups left out). A group is left out if a level without
    a score stands before its first failure: its number is not known."""
    groups: dict[tuple[str, int], dict[int, Satisfied | None]] = {}
    for key, satisfied in scores.items():
        groups.setdefault((key.file, key.example_id), {})[key.level] = satisfied
    lengths = [_run([levels.get(level) for level in LEVELS]) for levels in groups.values()]
    known = [length for length in lengths if length is not None]
    mean = sum(known) / len(known) if known else None
    return mean, len(known), len(lengths) - len(known)


def _run(levels: Sequence[Satisfied | None]) -> int | None:
    for done, satisfied in enumerate(levels):
        if satisfied is None:
            return None
        if not all(satisfied):
            return done
    return len(levels)
