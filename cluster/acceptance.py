"""Which demonstrations are trained: the filters of ``sft.filters``, what they refused and why, and
the mix of behaviours by source.

The decision is written down (``acceptance.json``) and read back on resume: a judge that would
decide otherwise today does not change what a run trains.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.roles import local_or_remote
from cluster.run_directory import write_json
from curricula.demonstrations import Demonstration
from evals.behaviours import behaviour_mix
from rewards.deadline import close_with_deadline, score_with_deadline, start_with_deadline
from rewards.format import think_fault
from rewards.language import LanguageConsistency
from rewards.texture import repeated_share, words
from safeladder.config import Config, PrincipleConfig
from safeladder.errors import DataError, NotResumableError, VerifierUnavailableError
from safeladder.paths import PathError, read_bytes
from safeladder.records import ScoreRequest, Verdict, VerdictStatus
from safeladder.stage_config import SftFilters

BATCH = 32
"""Rows of one call; a call has the principle's ``timeout_s``."""
FILE = "acceptance.json"


@dataclass(frozen=True)
class Acceptance:
    """What became of the rows of ``sft.data``, which stand in file order."""

    rows: Sequence[Demonstration]
    refused: Mapping[int, str] = field(default_factory=dict)
    """Row → why it is not trained."""

    @property
    def accepted(self) -> list[int]:
        """Rows that are trained."""
        return [index for index in range(len(self.rows)) if index not in self.refused]

    def summary(self) -> dict[str, Any]:
        """Counts, reasons and behaviours, by source."""
        sources = sorted({row.source for row in self.rows})
        return {
            "rows": len(self.rows),
            "accepted": len(self.accepted),
            "refused": dict(Counter(self.refused.values()).most_common()),
            "sources": {source: self._of(source) for source in sources},
        }

    def lines(self) -> Iterator[str]:
        """The same in sentences."""
        for name, of in self.summary()["sources"].items():
            why = ", ".join(f"{count} {reason}" for reason, count in of["refused"].items())
            mix = ", ".join(f"{name} {share:.0%}" for name, share in of["behaviours"].items())
            yield (
                f"{name}: {of['accepted']} of {of['rows']} demonstrations accepted"
                + (f" (refused: {why})" if why else "")
                + (f"; behaviours: {mix}" if mix else "")
            )

    def write(self, folder: Path) -> None:
        """Keep the decision in the folder of the run."""
        by_reason: dict[str, list[int]] = {}
        for index, reason in self.refused.items():
            by_reason.setdefault(reason, []).append(index)
        write_json(folder / FILE, {**self.summary(), "refused_rows": by_reason})

    def require_some(self) -> None:
        """Raise ``DataError`` if nothing is left to train."""
        if not self.accepted:
            why = ", ".join(f"{n} {text}" for text, n in Counter(self.refused.values()).items())
            raise DataError(f"sft: every demonstration is refused ({why}); relax sft.filters")

    def _of(self, source: str) -> dict[str, Any]:
        own = [index for index, row in enumerate(self.rows) if row.source == source]
        taken = [self.rows[index].response for index in own if index not in self.refused]
        return {
            "rows": len(own),
            "accepted": len(taken),
            "refused": dict(Counter(self.refused[i] for i in own if i in self.refused)),
            "behaviours": behaviour_mix(taken),
        }


def read_acceptance(folder: Path, rows: Sequence[Demonstration]) -> Acceptance | None:
    """What an earlier start of the run decided; None if there was none. Raises
    ``NotResumableError`` if the file does not fit the rows."""
    try:
        tree = json.loads(read_bytes(folder / FILE))
        if tree["rows"] != len(rows):
            raise ValueError(f"it is of {tree['rows']} rows, sft.data has {len(rows)} now")
        pairs = [(i, why) for why, indexes in tree["refused_rows"].items() for i in indexes]
        return Acceptance(rows, dict(sorted(pairs)))
    except FileNotFoundError:
        return None
    except (PathError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotResumableError(
            f"{folder / FILE} does not say which demonstrations the run trains ({error}); put "
            "sft.data back as it was, or start another run"
        ) from None


def judge_demonstrations(
    config: Config, rows: Sequence[Demonstration], *, ask: bool = True
) -> Acceptance:
    """Apply ``sft.filters``, cheapest first; principles are asked only if ``ask``. Call it outside
    any event loop.

    Raises ``DataError`` for a route that is none, ``VerifierUnavailableError`` if a principle has
    nothing but INVALID verdicts.
    """
    assert config.sft is not None, "the run has no demonstrations"
    filters = config.sft.filters
    refused = {i: why for i, row in enumerate(rows) if (why := _fault(row, filters)) is not None}
    if filters.verify:
        if all(row.route is None for row in rows):
            raise DataError(
                "sft.filters.verify: no row of sft.data has a route, so no principle would be "
                "asked; add the column `route`, or take the filter away"
            )
        for row in rows:
            if row.route is not None and row.route not in config.routes:
                names = ", ".join(sorted(config.routes)) or "there is none"
                raise DataError(f"{row.place}: column route: {row.route!r} is no route ({names})")
        if ask:
            refused |= asyncio.run(_verified(config, rows, refused))
    return Acceptance(rows, dict(sorted(refused.items())))


def _fault(row: Demonstration, filters: SftFilters) -> str | None:
    if filters.format and (fault := think_fault(row.response)) is not None:
        return f"format: {fault}"
    if filters.language:
        rule = LanguageConsistency(principle="language", require_format=False)
        judgment = rule.judge(_request(row, 0))
        if judgment.score < 1:
            return f"language: {judgment.label}"
    if filters.max_repetition is not None:
        share = repeated_share(words(row.response))
        if share > filters.max_repetition:
            return "repetition"
    return None


async def _verified(
    config: Config, rows: Sequence[Demonstration], refused: Mapping[int, str]
) -> dict[int, str]:
    """Row → the first principle of its route that does not take it."""
    assert config.sft is not None, "the run has no demonstrations"
    least = config.sft.filters.min_score
    found: dict[int, str] = {}
    for principle, settings in config.principles.items():
        asked = [
            (index, _request(row, index))
            for index, row in enumerate(rows)
            if index not in refused
            and row.route is not None
            and principle in config.routes[row.route]
        ]
        if not asked:
            continue
        verdicts = await _ask(config, principle, settings, [request for _, request in asked])
        for (index, _), verdict in zip(asked, verdicts, strict=True):
            if verdict.status is VerdictStatus.INVALID:
                found.setdefault(index, f"{principle}: invalid ({verdict.cause})")
            elif verdict.score is not None and verdict.score < least:
                found.setdefault(index, f"{principle}: below {least:g}")
    return found


async def _ask(
    config: Config, principle: str, settings: PrincipleConfig, requests: Sequence[ScoreRequest]
) -> list[Verdict]:
    """A service that the run would spawn is asked in this process."""
    is_remote = settings.service is not None and settings.service.address is not None
    verifier = local_or_remote(
        principle, settings if is_remote else settings.model_copy(update={"service": None})
    )
    verdicts: list[Verdict] = []
    try:
        await start_with_deadline(verifier, config.placement.start_deadline_s, principle=principle)
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            verdicts += await score_with_deadline(
                verifier, batch, settings.timeout_s * len(batch), principle=principle
            )
    finally:
        await close_with_deadline(verifier, principle=principle)
    if all(verdict.status is VerdictStatus.INVALID for verdict in verdicts):
        raise VerifierUnavailableError(
            f"principles.{principle}: every demonstration is INVALID({verdicts[0].cause}): "
            f"{verdicts[0].evidence or 'no reason given'}"
        )
    return verdicts


def _request(row: Demonstration, index: int) -> ScoreRequest:
    return ScoreRequest(
        sample_id=f"sft/0/{index}",
        attempt=1,
        messages=row.messages,
        response=row.response,
        finish_reason="stop",
        num_tokens=len(row.response.split()),
        route=row.route or "",
        reference=row.reference,
        lang=row.lang,
        meta=row.meta,
    )
