"""What ``compose hard`` does: options to sentences or a file, whole or not at all."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import typer

from curricula.composer import ComposeOptions, Orders, compose_rows
from curricula.constraint_sets import draw_types
from curricula.pbif import Round
from curricula.rows import read_rows
from curricula.type_difficulty import TypeDifficulty
from rewards.constraints.vocabulary import HARD
from safeladder.errors import ConfigError
from safeladder.paths import PathError, kind_of, read_bytes
from safeladder.whole_file import write_whole


class HardOptions(NamedTuple):
    """The options as they were typed."""

    constraints: str
    types: list[str]
    orders: str
    cddi: float
    shape: str
    per_seed: int
    seed: int


def compose_hard(seeds: Path, out: Path, options: HardOptions, difficulty: Path | None) -> int:
    """Write ``out`` and say what is in it. Raises ``ConfigError`` and ``DataError``."""
    wanted = _checked(options)
    try:
        if kind_of(out) is not None:
            raise ConfigError(f"--out {out}: is there already; remove it or name another file")
    except PathError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error})") from None
    known = None if difficulty is None else read_difficulty(difficulty)
    counts: Counter[str] = Counter()
    sizes: Counter[int] = Counter()

    def lines() -> Iterator[str]:
        for row in compose_rows(read_rows(seeds), wanted, known):
            counts.update(row["instruction_id_list"])
            sizes[row["num_constraints"]] += 1
            yield json.dumps(row, ensure_ascii=False) + "\n"

    write_whole(out, lines())
    by_size = ", ".join(f"{number} with {size}" for size, number in sorted(sizes.items()))
    typer.echo(f"{out}: {sizes.total()} rows ({by_size} constraints), {len(counts)} types")
    if known is None:
        typer.echo("no --difficulty was given: the ranks are drawn, and CDDI measures nothing")
    return 0


def read_difficulty(path: Path) -> TypeDifficulty:
    """Pass rates by type from a file. Raises ``ConfigError``."""
    try:
        return TypeDifficulty.load(json.loads(read_bytes(path)))
    except FileNotFoundError:
        raise ConfigError(f"--difficulty {path}: there is no such file") from None
    except ValueError as error:
        raise ConfigError(f"--difficulty {path}: cannot be read ({error})") from None


def _checked(options: HardOptions) -> ComposeOptions:
    bounds = re.fullmatch(r"([1-9]\d?)(?:-([1-9]\d?))?", options.constraints)
    counts = tuple(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)) if bounds else ()
    if not counts:
        raise ConfigError(f"--constraints {options.constraints}: write a number or a range, 1-5")
    unknown = sorted(set(options.types) - set(HARD))
    if unknown:
        raise ConfigError(f"--type {unknown[0]}: is none of {', '.join(HARD)}")
    if not -1 <= options.cddi <= 1:
        raise ConfigError(f"--cddi {options.cddi:g}: is outside -1 to 1")
    types = tuple(options.types) or tuple(HARD)
    try:
        draw_types(counts[-1], random.Random(0), types)
    except ValueError as error:
        raise ConfigError(f"--constraints {options.constraints}: {error}") from None
    return ComposeOptions(
        counts=counts,
        types=types,
        orders=_one_of("--orders", options.orders, get_args(Orders)),
        cddi=options.cddi,
        shape=_one_of("--round", options.shape, get_args(Round)),
        per_seed=options.per_seed,
        seed=options.seed,
    )


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise ConfigError(f"{option} {value}: is none of {', '.join(choices)}")
    return value
