"""Canaries: answers whose verdict is known, asked of a verifier by the way that samples go.

One JSON object a line: a row of data with ``response`` and ``expect``, which gives ``label``, or
``min`` and ``max`` of the score, or all three. An INVALID verdict never passes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from curricula.prompts import load_prompts, read_rows
from safeladder.config import Config
from safeladder.errors import DataError
from safeladder.records import ScoreRequest, Verdict, VerdictStatus

_KEYS = {"label", "min", "max"}


@dataclass(frozen=True, slots=True)
class Canary:
    """One request and what its verdict must be."""

    request: ScoreRequest
    label: str | None
    low: float
    high: float

    def fault(self, verdict: Verdict) -> str | None:
        """How the verdict differs from what it must be; None if it is right."""
        said = f"{verdict.status} {verdict.score} {verdict.label or verdict.cause or ''}".strip()
        wanted = f"{self.low:g} to {self.high:g}" + (f", {self.label!r}" if self.label else "")
        score = verdict.score
        is_right = (
            verdict.status is VerdictStatus.OK
            and score is not None
            and self.low <= score <= self.high
            and self.label in (None, verdict.label)
        )
        return None if is_right else f"{self.request.sample_id}: {said} instead of {wanted}"


def canaries_of(config: Config) -> dict[str, list[Canary]]:
    """Principle → its canaries, for those that have some. Raises ``DataError``."""
    found = {}
    for name, settings in config.principles.items():
        if settings.canaries is not None:
            try:
                found[name] = load_canaries(settings.canaries, config.routes)
            except DataError as error:
                raise DataError(f"principles.{name}.canaries: {error}") from None
    return found


def first_round() -> int:
    """Number of a first round of canaries, later than that of any round of some minutes ago."""
    return int(time.time()) % 2**30


def requests_of(canaries: Sequence[Canary], number: int) -> list[ScoreRequest]:
    """The requests of one round. Each round is another attempt, since a service keeps the answers
    that it has given to equal questions, and a drift would not be seen."""
    return [msgspec.structs.replace(canary.request, attempt=number) for canary in canaries]


def load_canaries(path: Path, routes: Collection[str]) -> list[Canary]:
    """Raises ``DataError`` naming file, line and column."""
    rows = list(read_rows(path))
    prompts = load_prompts([path], routes)
    return [
        _canary(place, row, prompt.id, prompt.messages, prompt.route, prompt.reference, prompt.meta)
        for (place, row), prompt in zip(rows, prompts, strict=True)
    ]


def faults_of(canaries: Sequence[Canary], verdicts: Sequence[Verdict]) -> list[str]:
    """What is wrong with the answer to all canaries of a principle; empty if nothing is."""
    if len(verdicts) != len(canaries):
        return [f"{len(verdicts)} verdicts on {len(canaries)} canaries"]
    found = (canary.fault(v) for canary, v in zip(canaries, verdicts, strict=True))
    return [fault for fault in found if fault is not None]


def _canary(
    place: str, row: Any, row_id: str, messages: Any, route: str, reference: str | None, meta: Any
) -> Canary:
    response, expect = row.get("response"), row.get("expect")
    if not isinstance(response, str):
        raise DataError(f"{place}: column response is missing; give the answer to judge as text")
    if not isinstance(expect, dict) or not expect or not expect.keys() <= _KEYS:
        raise DataError(
            f"{place}: column expect must give label, or min and max of the score, got {expect!r}"
        )
    low, high = expect.get("min", 0.0), expect.get("max", 1.0)
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in (low, high)) or low > high:
        raise DataError(f"{place}: column expect: min {low!r} and max {high!r} are no range")
    request = ScoreRequest(
        sample_id=f"canary/{row_id}",
        attempt=1,
        messages=messages,
        response=response,
        finish_reason="stop",
        num_tokens=len(response.split()),
        route=route,
        reference=reference,
        meta={key: value for key, value in meta.items() if key not in ("response", "expect")},
    )
    return Canary(request, expect.get("label"), float(low), float(high))
