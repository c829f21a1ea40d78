"""What ``compose soft`` does: a config and seeds to pairs, demonstrations and a report."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import typer

from cluster.reply_cache import ReplyCache
from cluster.soft_composition import Composer, started_backends
from cluster.soft_config import SoftConfig
from cluster.soft_results import Composition, Seed, rows_of
from curricula.prompts import take_messages
from curricula.rows import Row, read_rows
from curricula.soft_rewriter import load_rewriter_template
from rewards.pairwise_judge import load_pairwise_template
from safeladder.config_loading import files_and_overrides, read_trees, validated_as
from safeladder.errors import ConfigError, DataError, VerifierUnavailableError
from safeladder.whole_file import write_whole

REPLIES = "replies.jsonl"
TOLD_EVERY = 10


def compose_soft(words: list[str]) -> int:
    """Compose, write the results, say what came of it.

    Raises ``ConfigError`` and ``DataError`` before any model is loaded, and
    ``VerifierUnavailableError`` for one that cannot be reached, or if every seed failed.
    """
    files, overrides = files_and_overrides(words)
    start = "a composition starts with `seeds:`, `out:`, `writer:` and `judge:`"
    config = validated_as(SoftConfig, read_trees(files, overrides, start))
    load_rewriter_template(config.rewriter_template)
    load_pairwise_template(config.judge_template)
    seeds = read_seeds(config.seeds)[: config.limit]
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {config.out} cannot be made ({error.strerror})") from None
    result = asyncio.run(_composed(config, seeds))
    report = result.report()
    for name, rows in rows_of(result, config.system_prompt).items():
        write_whole(config.out / f"{name}.jsonl", _lines(rows))
    write_whole(config.out / "report.json", [json.dumps(report, indent=1) + "\n"])
    _tell(config.out, report)
    if not result.composed:
        seed, reason = result.failed[0]
        raise VerifierUnavailableError(
            f"none of {len(seeds)} seeds could be composed; the first, {seed.id}: {reason}"
        )
    return 0


def read_seeds(path: Path) -> list[Seed]:
    """The instructions of a file. Raises ``DataError`` naming file, line and column."""
    seeds: dict[str, Seed] = {}
    for place, row in read_rows(path):
        text = _instruction(place, row)
        name = str(row.get("id") or hashlib.sha256(text.encode()).hexdigest()[:12])
        if name in seeds:
            raise DataError(f"{place}: column id: {name!r} stands twice; remove one of the rows")
        seeds[name] = Seed(id=name, text=text)
    return list(seeds.values())


def _instruction(place: str, row: Row) -> str:
    if "instruction" in row:
        parts = [row["instruction"], row.get("input") or ""]
        if not all(isinstance(part, str) for part in parts) or not parts[0].strip():
            raise DataError(f"{place}: column instruction: must be text that is not empty")
        return "\n".join(part for part in parts if part.strip())
    messages = take_messages(place, dict(row))
    if len(messages) != 1 or messages[0].role != "user":
        raise DataError(
            f"{place}: column messages: a seed is one user turn; a system turn is the config's "
            "`system_prompt`"
        )
    return messages[0].content


async def _composed(config: SoftConfig, seeds: list[Seed]) -> Composition:
    with ReplyCache(config.out / REPLIES) as cache:
        if cache.num_kept:
            typer.echo(f"{cache.num_kept} replies are kept in {config.out / REPLIES}")
        async with AsyncExitStack() as stack:
            backends = await started_backends(config, stack)

            def tell(done: int) -> None:
                if done % TOLD_EVERY == 0 or done == len(seeds):
                    typer.echo(f"{done} of {len(seeds)} seeds, {cache.num_asked} replies asked for")

            return await Composer(config, cache, backends).run(seeds, tell)


def _tell(out: Path, report: Mapping[str, Any]) -> None:
    pairs, rate = report["pairs"], report["agreement"]
    agreed = "the judge decided nothing"
    if rate is not None:
        agreed = f"the judge agreed with itself {100 * rate:.0f} % of the time"
    typer.echo(
        f"{out}{os.sep}: {pairs} pairs, {report['sft_rows']} demonstrations from "
        f"{report['composed']} of {report['seeds']} seeds; {agreed}, steps: "
        + (", ".join(f"{count} {name}" for name, count in report["steps"].items()) or "none")
    )
    for reason, count in report["failed"].items():
        typer.echo(f"  {count} seeds failed: {reason}")
    if report["failed"]:
        typer.echo("  the same command asks for what is missing, and for nothing else")
    for reason, count in report["judge_faults"].items():
        typer.echo(f"  {count} comparisons without a choice: {reason}")
    for name, count in report["constraints_refused"].items():
        typer.echo(f"  {count} replies of the rewriter held no {name}")


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
