"""Checks per second of the constraint rules on one core: ``python -m benchmarks.rules [--short]``.

Answers are put together from the repository's own labelled responses, 50 to 2,400 characters long.
Each is judged by the whole verifier (parsing of the row, seven constraints without a language type,
evidence), as a verifier actor does it: that is the throughput. The time of a single check, every
type without language detection on every answer, gives the 99th percentile. Types that detect a
language are measured apart.

The last line is one JSON object; the exit code is 0 only if the bars hold.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from random import Random

from curricula.constraint_sets import draw_constraint, draw_constraints
from rewards.constraints.language import load_detector
from rewards.constraints.rows import Stated, stated
from rewards.constraints.vocabulary import HARD
from rewards.instructions import InstructionRules
from safeladder.records import Message, ScoreRequest

BAR_CHECKS_PER_S = 2000
BAR_P99_MS = 2.0
BAR_LANGUAGE_PER_S = 40
LANGUAGE_TYPES = (
    "language:response_language",
    "change_case:english_capital",
    "change_case:english_lowercase",
)
PLAIN_TYPES = tuple(name for name in HARD if name not in LANGUAGE_TYPES)
CONSTRAINTS_PER_ROW = 7
RESPONSES = Path(__file__).parents[1] / "evals" / "data" / "labelled_responses.jsonl"


def make_answers(count: int, rng: Random) -> list[str]:
    """Texts of real sentences, some with bullets or a highlight."""
    lines = RESPONSES.read_text(encoding="utf-8").splitlines()
    parts = [text for line in lines if (text := json.loads(line)["response"].strip())]
    answers = []
    for _ in range(count):
        length, answer = rng.randint(50, 2400), ""
        while len(answer) < length:
            answer += rng.choice(("", "\n\n", "\n* ", " ")) + rng.choice(parts)
        answers.append(answer[:length])
    return answers


def checks_of(types: tuple[str, ...], rng: Random) -> list[Stated]:
    """One constraint of each type."""
    drawn = [draw_constraint(name, "Write about tea.", rng) for name in types]
    return list(stated([{"id": one.id, "kwargs": one.kwargs} for one in drawn]))


def time_checks(types: tuple[str, ...], answers: list[str], rng: Random) -> list[float]:
    """Seconds of each check, one by one."""
    times = []
    for answer in answers:
        for one in checks_of(types, rng):
            started = time.perf_counter()
            one.is_met(answer, "hardened")
            times.append(time.perf_counter() - started)
    return times


def time_verifier(answers: list[str], rng: Random) -> tuple[int, float]:
    """(checks, seconds) of the verifier; groups of 8 answers share a row."""
    verifier = InstructionRules(principle="instruction")
    requests = []
    for index, answer in enumerate(answers):
        if index % 8 == 0:
            drawn = draw_constraints("Write about tea.", CONSTRAINTS_PER_ROW, rng, PLAIN_TYPES)
            meta = {
                "instruction_id_list": [one.id for one in drawn],
                "kwargs": [dict(one.kwargs) for one in drawn],
            }
        requests.append(
            ScoreRequest(
                sample_id=f"0/0/{index}",
                attempt=0,
                messages=(Message("user", "Write about tea."),),
                response=answer,
                finish_reason="stop",
                num_tokens=1,
                route="instruction",
                meta=meta,
            )
        )
    started = time.perf_counter()
    verdicts = [verifier.settle_now(request) for request in requests]
    seconds = time.perf_counter() - started
    if any(verdict.score is None for verdict in verdicts):
        raise RuntimeError("a verdict without a score: the workload is wrong")
    return CONSTRAINTS_PER_ROW * len(requests), seconds


def main() -> int:
    """Measure on one core and print the figures."""
    is_short = "--short" in sys.argv[1:]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = Random(0)
    answers = make_answers(40 if is_short else 800, rng)
    load_detector()
    time_checks(PLAIN_TYPES, answers[:8], rng)  # loads the sentence model, compiles expressions
    rates, p99s = [], []
    for _ in range(1 if is_short else 3):
        num_checks, seconds = time_verifier(answers, rng)
        rates.append(round(num_checks / seconds))
        times = sorted(time_checks(PLAIN_TYPES, answers, rng))
        p99s.append(round(1e3 * times[int(0.99 * len(times))], 3))
        print(f"{rates[-1]} checks/s in the verifier; 99th percentile of a check {p99s[-1]} ms, "
              f"median {1e3 * statistics.median(times):.3f} ms")  # fmt: skip
    language = time_checks(LANGUAGE_TYPES[:1], answers[: 20 if is_short else 200], rng)
    language_rate = round(len(language) / sum(language))
    print(f"{language_rate} language checks/s")
    holds = (
        max(rates) >= BAR_CHECKS_PER_S
        and min(p99s) <= BAR_P99_MS
        and language_rate >= BAR_LANGUAGE_PER_S
    )
    result = {
        "name": "rules",
        "figure": max(rates),
        "unit": "checks/s/core",
        "bar": BAR_CHECKS_PER_S,
        "holds": holds,
        "repeats": rates,
        "p99_ms": min(p99s),
        "p99_bar_ms": BAR_P99_MS,
        "language_checks_per_s": language_rate,
        "language_bar": BAR_LANGUAGE_PER_S,
        "answers": len(answers),
    }
    print(json.dumps(result))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
