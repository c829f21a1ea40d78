"""``safeladder probe order``: what the order of constraints does to a model.

One pass that measures how hard each type is, unless a file says so; then every row at every level
of CDDI; then the figures. All answers lie in ``trials.jsonl``, so the same command goes on where an
earlier one stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cluster.order_report import print_order_report, write_order_report
from cluster.placement import compute_on
from cluster.probe_model import ProbeModel, as_json, started_engine
from cluster.probe_plan import (
    ROUNDS,
    ProbeRow,
    choose_rows,
    count_difficulty,
    difficulty_trials,
    hard_to_easy,
    plan_trials,
    read_difficulty,
    read_probe_rows,
)
from cluster.run_directory import host_facts
from curricula.orders import LEVELS
from curricula.type_difficulty import TypeDifficulty
from evals.order_judging import judge_trial
from evals.order_regression import regress_order
from evals.order_statistics import summarize_order
from evals.order_trials import Outcome, Round, Trial
from evals.trial_journal import Answered, TrialJournal
from evals.trial_runner import answer_trials
from rewards.constraints.port import Reading
from safeladder.errors import EnvironmentUnfitError
from safeladder.ports import RolloutEngine
from safeladder.whole_file import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderProbe:
    """The options of a probe."""

    model: ProbeModel
    prompts: Path
    out: Path
    rounds: tuple[Round, ...] = ROUNDS
    num_prompts: int = 50
    levels: tuple[float, ...] = LEVELS
    rotations: bool = False
    difficulty: Path | None = None
    """None: measured in a first pass."""
    seed: int = 0
    deadline_s: float = 600.0
    """For one trial, all its turns."""
    reading: Reading = "reference"

    def settings(self) -> dict[str, Any]:
        """What the answers and verdicts depend on, as JSON values."""
        return self.model.settings() | {
            "prompts": self.prompts.name,
            "prompts_sha256": hashlib.sha256(self.prompts.read_bytes()).hexdigest()[:16],
            "seed": self.seed,
            "reading": self.reading,
        }


@dataclass(slots=True)
class _Clock:
    """Seconds of generation, and what was made in them by this process."""

    seconds: float = 0.0
    tokens: int = 0
    answers: int = 0

    def note(self, answered: Answered) -> None:
        self.answers += 1
        self.tokens += answered.tokens


def order_probe_command(options: OrderProbe) -> int:
    """Ask, measure, write ``report.json``, ``report.html`` and ``difficulty.json`` into
    ``options.out``, print the tables."""
    compute_on(options.model.threads)
    rows, first_rows = choose_rows(
        read_probe_rows(options.prompts), options.num_prompts, options.seed
    )
    given = None if options.difficulty is None else read_difficulty(options.difficulty, rows)
    adds = options.model.template_adds()
    console = Console(stderr=True, highlight=False, markup=False)
    if adds:
        console.print(
            f"note: the chat template puts this before the first turn: {adds!r}; the published "
            "probe is without a system prompt, give --chat-template FILE to leave it out"
        )
    with TrialJournal(options.out / "trials.jsonl", options.settings()) as journal:
        report = asyncio.run(_probe(options, rows, first_rows, given, journal))
        report["template_adds"] = adds
    write_whole(options.out / "difficulty.json", as_json(report["difficulty"]["counts"]))
    write_whole(options.out / "report.json", as_json(report))
    page = write_order_report(options.out, report)
    print_order_report(report, sys.stdout)
    console.print(str(page))
    return 0


async def _probe(
    options: OrderProbe,
    rows: Sequence[ProbeRow],
    first_rows: Sequence[ProbeRow],
    given: TypeDifficulty | None,
    journal: TrialJournal,
) -> dict[str, Any]:
    clock = _Clock()
    async with started_engine(options.model) as engine:
        difficulty = given
        if difficulty is None:
            first = difficulty_trials(first_rows, options.seed)
            await _answer(engine, first, options, journal, clock, "difficulty")
            counted = outcomes_of(first, journal)
            _require_verdict(counted, journal)
            difficulty = count_difficulty(counted)
        trials = plan_trials(
            rows,
            difficulty,
            rounds=options.rounds,
            levels=options.levels,
            rotations=options.rotations,
            seed=options.seed,
        )
        await _answer(engine, trials, options, journal, clock, "levels")
    outcomes = outcomes_of(trials, journal)
    _require_verdict(outcomes, journal)
    return {
        "kind": "order probe",
        "settings": options.settings() | {"num_prompts": options.num_prompts},
        "levels": list(options.levels),
        "rotations": options.rotations,
        "difficulty": {
            "source": "first pass" if options.difficulty is None else options.difficulty.name,
            "prompts": len(first_rows) if given is None else None,
            "counts": difficulty.dump(),
            "hard_to_easy": hard_to_easy(difficulty),
        },
        "rounds": {
            shape: measure_round([o for o in outcomes if o.trial.round == shape], options.seed)
            for shape in options.rounds
        },
        "failures": dict(_failures(outcomes, journal)),
        "samples": _samples(trials, journal),
        "generation": {
            "seconds": round(clock.seconds, 1),
            "answers": clock.answers,
            "tokens": clock.tokens,
        },
        "packages": host_facts()["packages"],
    }


def measure_round(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """The figures of one round, with the regression."""
    return {
        **summarize_order(outcomes, seed=seed),
        "regression": regress_order(outcomes, seed=seed),
    }


def outcomes_of(trials: Sequence[Trial], journal: TrialJournal) -> list[Outcome]:
    """What became of each trial; all verdicts INVALID where there is no answer."""
    return [
        Outcome(
            trial=trial,
            passed=journal.answered[trial.id].passed or (None,) * len(trial.constraints),
        )
        for trial in trials
    ]


async def _answer(
    engine: RolloutEngine,
    trials: Sequence[Trial],
    options: OrderProbe,
    journal: TrialJournal,
    clock: _Clock,
    name: str,
) -> None:
    done = sum(trial.id in journal.answered for trial in trials)
    began = time.monotonic()
    with _progress(name, len(trials), done) as advance:

        def on_answer(answered: Answered) -> None:
            clock.note(answered)
            advance()

        await answer_trials(
            [engine],
            trials,
            partial(judge_trial, reading=options.reading),
            journal,
            max_new_tokens=options.model.max_new_tokens,
            deadline_s=options.deadline_s,
            on_answer=on_answer,
        )
    clock.seconds += time.monotonic() - began


@contextmanager
def _progress(name: str, total: int, done: int) -> Iterator[Any]:
    """A bar on stderr; yields what moves it by one."""
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda: bar.advance(task)


def _samples(trials: Sequence[Trial], journal: TrialJournal) -> list[dict[str, Any]]:
    """What was asked and answered, for the first row at both ends of each round."""
    found = []
    for shape in sorted({trial.round for trial in trials}):
        asked = [trial for trial in trials if trial.round == shape and trial.variant == "level"]
        first = [trial for trial in asked if trial.prompt == asked[0].prompt]
        for trial in (first[0], first[-1]):
            answered = journal.answered[trial.id]
            answer = answered.answers[-1] if answered.answers else answered.detail
            found.append(
                {
                    "round": shape,
                    "cddi": trial.cddi,
                    "turns": list(trial.turns),
                    "answer": answer,
                    "passed": dict(zip(trial.types, answered.passed, strict=False)),
                }
            )
    return found


def _failures(outcomes: Sequence[Outcome], journal: TrialJournal) -> Counter[str]:
    found = (journal.answered[outcome.trial.id].failure for outcome in outcomes)
    return Counter(failure for failure in found if failure is not None)


def _require_verdict(outcomes: Sequence[Outcome], journal: TrialJournal) -> None:
    if not any(verdict is not None for outcome in outcomes for verdict in outcome.passed):
        failures = _failures(outcomes, journal)
        raise EnvironmentUnfitError(
            f"no trial has a verdict ({_in_words(failures)}): there is nothing to report; "
            "see --max-prompt-tokens and --deadline-s"
        )


def _in_words(failures: Counter[Any]) -> str:
    return json.dumps(dict(failures)) if failures else "no failures, all verdicts INVALID"
