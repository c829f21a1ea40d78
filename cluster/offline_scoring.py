"""``safeladder score``: the configured principles on a file of answers, with no run and no GPU.

The quickest way to see what a verifier thinks. Rows are those of ``data``, with a column
``response``. Verifiers are asked as in a run: batches, deadlines, INVALID instead of exceptions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.roles import local_or_remote
from curricula.prompts import load_prompts, read_rows
from rewards.combine import combine_group
from rewards.deadline import close_with_deadline, score_with_deadline, start_with_deadline
from safeladder.config import Config
from safeladder.errors import DataError
from safeladder.paths import PathError, read_bytes
from safeladder.ports import Verifier
from safeladder.records import Prompt, ScoreRequest, Verdict, VerdictStatus
from vision.reading import without_marks

BATCH = 32
"""Samples of one call; a call has the principle's ``timeout_s``, as a group has in a run."""
BINS = 10


@dataclass(frozen=True, slots=True)
class PrincipleSummary:
    """One principle over all rows of its routes."""

    principle: str
    verifier: str
    rows: int
    not_applicable: int
    invalid: dict[str, int]
    """Cause → verdicts."""
    reasons: dict[str, str]
    """Cause → row and evidence of its first verdict."""
    mean: float | None
    """Of the OK scores; None without one."""
    histogram: tuple[int, ...]
    """OK scores in ``BINS`` equal bins of [0, 1]; the last bin holds 1 too."""
    disagreement: float | None
    """Mean of a quorum's; None for one judge alone."""


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """What became of a file."""

    verdicts: list[Verdict]
    """In order of principles, then rows; ``sample_id`` is the row's id."""
    rewards: dict[str, float | None]
    """Row id → reward; None where a verdict is INVALID or no principle applies."""

    def summaries(self) -> list[PrincipleSummary]:
        """One line for each principle, in order of the config."""
        by_principle: dict[str, list[Verdict]] = {}
        for verdict in self.verdicts:
            by_principle.setdefault(verdict.principle, []).append(verdict)
        return [_summarize(name, verdicts) for name, verdicts in by_principle.items()]


async def score_file(config: Config, path: Path, limit: int | None = None) -> ScoredFile:
    """Score the first ``limit`` rows (None: all).

    Raises ``DataError`` naming the line of a row without a response or with an image that cannot
    be read, ``ConfigError`` for a verifier that cannot be built, all before any is asked, and
    ``VerifierUnavailableError`` if one does not start.
    """
    places = []
    for place, row in read_rows(path):
        places.append(place)
        if not isinstance(row.get("response"), str):
            raise DataError(
                f"{place}: column response is missing; give the answer to score as text"
            )
    prompts = load_prompts([path], config.routes, config.model.system_prompt)[:limit]
    requests = [_request(p, place) for p, place in zip(prompts, places, strict=False)]
    asked = {
        name: [request for request in requests if name in config.routes[request.route]]
        for name in config.principles
    }
    verifiers = {name: _build(name, config) for name in asked if asked[name]}
    found = {
        name: await _score(name, verifier, asked[name], config)
        for name, verifier in verifiers.items()
    }
    verdicts = [verdict for scored in found.values() for verdict in scored.values()]
    return ScoredFile(verdicts, _rewards(config, prompts, found))


def _build(principle: str, config: Config) -> Verifier:
    """In this process, unless its service has an address."""
    settings = config.principles[principle]
    service = settings.service if settings.service and settings.service.address else None
    return local_or_remote(principle, settings.model_copy(update={"service": service}))


async def _score(
    principle: str, verifier: Verifier, requests: Sequence[ScoreRequest], config: Config
) -> dict[str, Verdict]:
    """Row id → verdict."""
    verdicts: list[Verdict] = []
    try:
        await start_with_deadline(verifier, config.placement.start_deadline_s, principle=principle)
        for start in range(0, len(requests), BATCH):
            verdicts += await score_with_deadline(
                verifier,
                requests[start : start + BATCH],
                config.principles[principle].timeout_s,
                principle=principle,
            )
    finally:
        await close_with_deadline(verifier, principle=principle)
    return {verdict.sample_id: verdict for verdict in verdicts}


def _request(prompt: Prompt, place: str) -> ScoreRequest:
    response = str(prompt.meta["response"])
    return ScoreRequest(
        sample_id=prompt.id,
        attempt=1,
        messages=without_marks(prompt),
        response=response,
        finish_reason="length" if prompt.meta.get("finish_reason") == "length" else "stop",
        num_tokens=len(response.split()),
        route=prompt.route,
        reference=prompt.reference,
        lang=prompt.lang,
        images=tuple(_image(image, place) for image in prompt.images),
        meta={key: value for key, value in prompt.meta.items() if key != "response"},
    )


def _image(image: str, place: str) -> bytes:
    try:
        return read_bytes(Path(image))
    except FileNotFoundError:
        why = "no such file"
    except PathError as error:
        why = str(error)
    raise DataError(
        f"{place}: column images: {image} cannot be read ({why}); correct the path, or remove it"
    )


def _rewards(
    config: Config, prompts: Sequence[Prompt], found: dict[str, dict[str, Verdict]]
) -> dict[str, float | None]:
    rewards: dict[str, float | None] = {}
    # Rows are no siblings: relative rewards have no meaning here, their weighted sum does.
    rule = config.reward
    if rule.combine == "decoupled":
        rule = rule.model_copy(update={"combine": "additive"})
    for prompt in prompts:
        weights = config.routes[prompt.route]
        verdicts = {name: found[name][prompt.id] for name in weights}
        has_score = any(
            v.status is VerdictStatus.OK and name not in rule.gates for name, v in verdicts.items()
        )
        is_valid = all(v.status is not VerdictStatus.INVALID for v in verdicts.values())
        rewards[prompt.id] = (
            combine_group(weights, [verdicts], rule)[0] if has_score and is_valid else None
        )
    return rewards


def _summarize(principle: str, verdicts: Sequence[Verdict]) -> PrincipleSummary:
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    apart = [v.disagreement for v in verdicts if v.disagreement is not None]
    counts = Counter(min(int(score * BINS), BINS - 1) for score in scores)
    causes = Counter(verdict.cause.value for verdict in verdicts if verdict.cause is not None)
    reasons: dict[str, str] = {}
    for verdict in verdicts:
        if verdict.cause is not None:
            why = " ".join((verdict.evidence or "no reason given").split())
            reasons.setdefault(verdict.cause.value, f"row {verdict.sample_id}: {why}")
    return PrincipleSummary(
        principle=principle,
        verifier=f"{verdicts[0].verifier} {verdicts[0].verifier_version}",
        rows=len(verdicts),
        not_applicable=sum(v.status is VerdictStatus.NOT_APPLICABLE for v in verdicts),
        invalid=dict(causes),
        reasons=reasons,
        mean=sum(scores) / len(scores) if scores else None,
        histogram=tuple(counts[b] for b in range(BINS)),
        disagreement=sum(apart) / len(apart) if apart else None,
    )


def verdict_row(verdict: Verdict, reward: float | None) -> dict[str, object]:
    """A line of the file that ``--out`` writes: the verdict, and its row's reward."""
    return {**verdict.as_row(), "reward": reward}
