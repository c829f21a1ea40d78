"""What an order probe asks: rows of a file to trials, at every level of CDDI.

Owns the paired design: the same instructions and constraints at every level, so that only the order
differs. An order is drawn uniformly from all orders of its CDDI, by seed, row and level alone, and
is the same in single and multi round. Difficulty belongs to a type and a model: ranks come from
pass rates by type, which a first pass over other rows of the file measures.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from cluster.compose_command import read_difficulty as stored_difficulty
from curricula.composition import Composition
from curricula.orders import LEVELS, cddi, count_inversions, draw_order, inverse, inversions_for
from curricula.pbif import read_pbif
from curricula.rows import read_rows
from curricula.type_difficulty import TypeDifficulty
from evals.order_trials import Outcome, Round, Trial, Variant
from safeladder.errors import ConfigError, DataError

ROUNDS: tuple[Round, ...] = ("single", "multi")


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One instruction, in no order yet."""

    id: str
    """Its line in the file."""
    composition: Composition

    @property
    def types(self) -> tuple[str, ...]:
        """[n] in the order of ``composition.constraints``."""
        return tuple(one.id for one in self.composition.constraints)


def read_probe_rows(path: Path) -> list[ProbeRow]:
    """All rows: PBIF's of either round, or compositions that we wrote.

    Raises ``DataError`` naming the line of a row that is none, or that has another number of
    constraints than the first, since levels of CDDI differ with it.
    """
    rows = [ProbeRow(place.rpartition(":")[2], found) for place, found in _compositions(path)]
    count = len(rows[0].types)
    for row in rows:
        if len(row.types) != count or count < 2:
            raise DataError(
                f"{path}:{row.id}: {len(row.types)} constraints; a probe needs rows of two or "
                f"more, as many as in the first row ({count})"
            )
    return rows


def _compositions(path: Path) -> Iterable[tuple[str, Composition]]:
    _, row = next(iter(read_rows(path)))
    if "seed_instruction" in row:
        return _own_compositions(path)
    texts = row.get("constraints")
    prompt = str(row.get("prompt"))
    is_single = isinstance(texts, list) and all(str(text) in prompt for text in texts)
    return read_pbif(path, "single" if is_single else "multi")


def _own_compositions(path: Path) -> Iterable[tuple[str, Composition]]:
    for place, row in read_rows(path):
        try:
            yield place, Composition.from_row(row)
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{place}: {error}") from None


def choose_rows(
    rows: Sequence[ProbeRow], num_prompts: int, seed: int
) -> tuple[list[ProbeRow], list[ProbeRow]]:
    """(rows to probe, rows for the first pass), drawn by seed.

    Seed instructions repeat as little as possible. The first pass gets as many rows, others if
    there are enough, and more until it has met every type that is probed. Raises ``ConfigError`` if
    the file has too few.
    """
    if num_prompts > len(rows):
        raise ConfigError(f"--num-prompts {num_prompts}: the file has {len(rows)} rows")
    shuffled = Random(f"rows/{seed}").sample(list(rows), len(rows))
    met: dict[str, int] = {}
    turn = {}
    for row in shuffled:
        turn[row.id] = met[row.composition.seed] = met.get(row.composition.seed, -1) + 1
    shuffled.sort(key=lambda row: turn[row.id])
    probed, others = shuffled[:num_prompts], shuffled[num_prompts:]
    pool = [*others, *probed]
    first, rest = pool[:num_prompts], pool[num_prompts:]
    missing = {kind for row in probed for kind in row.types} - {k for r in first for k in r.types}
    for row in rest:
        if missing & set(row.types):
            first.append(row)
            missing -= set(row.types)
    return probed, first


def difficulty_trials(rows: Sequence[ProbeRow], seed: int) -> list[Trial]:
    """The first pass: each row once, in single round, in an order drawn from all."""
    found = []
    for row in rows:
        order = list(range(len(row.types)))
        Random(f"difficulty/{seed}/{row.id}").shuffle(order)
        found.append(_trial(row, tuple(order), tuple(range(len(order))), "single", "difficulty"))
    return found


def count_difficulty(outcomes: Iterable[Outcome]) -> TypeDifficulty:
    """Pass rates of the types. Raises ``ConfigError`` for a type without any verdict: nothing is
    known of it."""
    found = TypeDifficulty()
    types: set[str] = set()
    for outcome in outcomes:
        types.update(outcome.trial.types)
        found.note(0, outcome.trial.types, outcome.passed)
    if unknown := sorted(types - set(found.dump()["types"])):
        raise ConfigError(
            f"the first pass has no verdict on {', '.join(unknown)}: their difficulty is not "
            "known; give --difficulty FILE"
        )
    return found


def read_difficulty(path: Path, rows: Iterable[ProbeRow]) -> TypeDifficulty:
    """Pass rates by type as ``TypeDifficulty.dump`` tells them: a probe's own ``difficulty.json``,
    or one that ``compose`` takes. Raises ``ConfigError`` for a file that is none, and for a type of
    the rows that is not in it."""
    found = stored_difficulty(path)
    missing = {kind for row in rows for kind in row.types} - set(found.dump()["types"])
    if missing:
        raise ConfigError(f"--difficulty {path}: nothing of {', '.join(sorted(missing))}")
    return found


def hard_to_easy(difficulty: TypeDifficulty) -> list[str]:
    """All types that are known, the hardest first."""
    types = list(difficulty.dump()["types"])
    return [types[place] for place in inverse(difficulty.ranks(types))]


def plan_trials(
    rows: Sequence[ProbeRow],
    difficulty: TypeDifficulty,
    *,
    rounds: Sequence[Round] = ROUNDS,
    levels: Sequence[float] = LEVELS,
    rotations: bool = False,
    seed: int = 0,
) -> list[Trial]:
    """Every row at every level in every round; with ``rotations`` also rows turned round."""
    found = []
    for row in rows:
        hardness = difficulty.ranks(row.types)
        counts = sorted({inversions_for(level, len(row.types)) for level in levels})
        drawn: list[tuple[tuple[int, ...], Variant]] = [
            (draw_order(len(row.types), k, Random(f"order/{seed}/{row.id}/{k}")), "level")
            for k in counts
        ]
        if rotations:
            turned = rotated_orders(len(row.types))
            drawn += [(ranks, "rotation") for ranks in turned if count_inversions(ranks) in counts]
        found += [
            _trial(row, ranks, hardness, shape, variant)
            for ranks, variant in drawn
            for shape in rounds
        ]
    return found


def rotated_orders(n: int) -> list[tuple[int, ...]]:
    """Hard to easy, turned by r and by n - r slots, which gives two orders of one CDDI: the r
    hardest stand last in one, the r easiest first in the other. And the mirror of each pair.

    >>> rotated_orders(3)
    [(1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2)]
    """
    found = []
    for r in range(1, math.ceil(n / 2)):
        pair = [(*range(shift, n), *range(shift)) for shift in (r, n - r)]
        found += [*pair, *(order[::-1] for order in pair)]
    return found


def _trial(
    row: ProbeRow,
    ranks: tuple[int, ...],
    hardness: tuple[int, ...],
    shape: Round,
    variant: Variant,
) -> Trial:
    source = row.composition
    composed = Composition.in_order(source.seed, source.constraints, ranks, hardness)
    k = count_inversions(ranks)
    name = f"k{k:02d}" if variant == "level" else variant
    turns = (composed.single_round(),) if shape == "single" else composed.multi_round()
    # Whoever asks something else, since difficulty has changed, does not take it for this one.
    digest = hashlib.sha256("\0".join(turns).encode()).hexdigest()[:8]
    return Trial(
        id=f"{shape}/{name}/{row.id}/{digest}",
        round=shape,
        variant=variant,
        prompt=row.id,
        cluster=hashlib.sha256(source.seed.encode()).hexdigest()[:12],
        ranks=ranks,
        inversions=k,
        cddi=cddi(ranks),
        constraints=tuple(
            {"id": one.id, "kwargs": dict(one.kwargs), "text": one.text}
            for one in composed.presented
        ),
        turns=turns,
    )
