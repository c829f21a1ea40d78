"""``safeladder evaluate-constraints``: files of IFEval's or FollowBench's format, answered, scored.

Answers come from a file, or from a model through the port of a rollout engine; each is on disk
before the next is asked, so the same command goes on where it stopped. Replies of a judge, which
FollowBench's items without a rule need, come in the same two ways.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cluster.constraint_report import print_constraint_report
from cluster.placement import compute_on
from cluster.probe_model import ProbeModel, started_engine
from cluster.run_directory import write_json
from curricula.rows import read_rows
from curricula.type_difficulty import TypeDifficulty
from evals.followbench import (
    LEVELS,
    Evolution,
    ItemKey,
    Satisfied,
    consecutive_levels,
    judge_question,
    level_table,
    read_evolutions,
    read_reply,
    rule_score,
)
from evals.held_out import Outcomes, compare
from evals.ifeval import (
    Followed,
    Item,
    follow,
    mean_floor,
    outcomes_by_group,
    outcomes_by_prompt,
    read_items,
    type_table,
)
from evals.order_trials import Trial
from evals.trial_journal import TrialJournal
from evals.trial_runner import answer_trials
from rewards.constraints.port import Reading
from safeladder.errors import ConfigError, DataError
from safeladder.whole_file import write_whole

Answers = Mapping[str, str]
"""Prompt → answer; a prompt without one is unscored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintEvaluation:
    """The options of an evaluation."""

    files: Sequence[Path]
    out: Path
    responses: Path | None = None
    """Rows {prompt, response}; None asks ``model``."""
    model: ProbeModel | None = None
    before: Path | None = None
    """Rows {prompt, response} of another model, for a table before and after."""
    judge: ProbeModel | None = None
    judge_replies: Path | None = None
    """Rows {question, reply}, the questions being those of ``judge_questions.jsonl``."""
    reading: Reading = "reference"
    policy_version: int = 0
    """Of the answers, for ``difficulty.json``."""
    limit: int | None = None
    """Rows of each file, or groups of levels; None takes all."""
    deadline_s: float = 600.0
    """For one answer."""


@dataclass(slots=True)
class _Files:
    items: list[Item] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The row of each item."""
    evolutions: list[Evolution] = field(default_factory=list)

    def prompts(self) -> list[str]:
        """Each once, in order."""
        levels = (one.instructions[level] for one in self.evolutions for level in LEVELS)
        return list(dict.fromkeys([*(item.prompt for item in self.items), *levels]))


@dataclass(slots=True)
class _Scored:
    """What came of one set of answers."""

    followed: list[Followed]
    levels: dict[ItemKey, Satisfied | None]
    questions: list[tuple[str, str]]
    """(key, question) of each judgment that has no reply."""
    outcomes: Outcomes


def evaluate_constraints(options: ConstraintEvaluation) -> int:
    """Answer, score, write ``responses.jsonl``, ``report.json`` and ``difficulty.json`` into
    ``options.out``, print the tables. Raises ``ConfigError`` and ``DataError``."""
    files = _read(options)
    answers = _answers(options, files.prompts())
    _require_folder(options.out)
    rows = _with_answers(files, answers)
    write_whole(options.out / "responses.jsonl", rows)
    scored = _score(options, files, answers)
    report = _report(options, files, scored)
    if options.before is not None:
        before = _score(options, files, _from_file(options.before, "prompt", "response"))
        report["before_and_after"] = compare(before.outcomes, scored.outcomes)
    if scored.questions:
        asked = ({"key": key, "question": question} for key, question in scored.questions)
        write_whole(options.out / "judge_questions.jsonl", map(_line, asked))
    write_json(options.out / "report.json", report)
    if scored.followed:
        write_json(options.out / "difficulty.json", _difficulty(scored, options).dump())
    print_constraint_report(report, sys.stdout)
    return 0


def _read(options: ConstraintEvaluation) -> _Files:
    files = _Files()
    names: set[str] = set()
    for path in options.files:
        rows = list(read_rows(path))
        if "example_id" in rows[0][1]:
            kind = path.stem.removesuffix("_constraints")
            if kind in names:
                raise ConfigError(f"{path}: two files are named {path.stem}; rename one")
            names.add(kind)
            files.evolutions += islice(read_evolutions(kind, rows), options.limit)
        else:
            rows = rows[: options.limit]
            several = len(options.files) > 1
            named = [(place, _named(path, place, row) if several else row) for place, row in rows]
            files.items += read_items(named)
            files.rows += [row for _, row in named]
    return files


def _require_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be made ({error.strerror})") from None


def _named(path: Path, place: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row with a key that no other file has."""
    key = row.get("key", row.get("id", place.rpartition(":")[2]))
    return row | {"key": f"{path.stem}/{key}"}


def _answers(options: ConstraintEvaluation, prompts: Sequence[str]) -> Answers:
    if (options.responses is None) == (options.model is None):
        raise ConfigError("give --responses FILE or --model FOLDER, one of the two")
    if options.responses is not None:
        return _from_file(options.responses, "prompt", "response")
    assert options.model is not None
    _require_folder(options.out)
    return _from_model(options.model, prompts, options.out / "answers.jsonl", options.deadline_s)


def _from_file(path: Path, question: str, answer: str) -> Answers:
    found: dict[str, str] = {}
    for place, row in read_rows(path):
        key, text = row.get(question), row.get(answer)
        if not isinstance(key, str) or not isinstance(text, str):
            raise DataError(f"{place}: columns {question} and {answer}: must be text")
        if found.setdefault(key, text) != text:
            raise DataError(f"{place}: column {question}: stands twice with different answers")
    return found


def _from_model(
    model: ProbeModel, prompts: Sequence[str], path: Path, deadline_s: float
) -> Answers:
    """Greedy answers; what an earlier call answered is not asked again."""
    compute_on(model.threads)
    trials = {prompt: _trial(prompt) for prompt in prompts}

    async def ask(journal: TrialJournal) -> None:
        async with started_engine(model) as engine:
            await answer_trials(
                [engine],
                list(trials.values()),
                lambda *_: (),
                journal,
                max_new_tokens=model.max_new_tokens,
                deadline_s=deadline_s,
            )

    with TrialJournal(path, model.settings()) as journal:
        if any(trial.id not in journal.answered for trial in trials.values()):
            asyncio.run(ask(journal))
        done = {prompt: journal.answered.get(trial.id) for prompt, trial in trials.items()}
    return {prompt: one.answers[-1] for prompt, one in done.items() if one and one.answers}


def _trial(prompt: str) -> Trial:
    """A prompt by itself, whose verdicts are not the engine's business."""
    return Trial(
        id=hashlib.sha256(prompt.encode()).hexdigest()[:24],
        round="single",
        variant="level",
        prompt="",
        cluster="",
        ranks=(),
        inversions=0,
        cddi=1.0,
        constraints=(),
        turns=(prompt,),
    )


def _score(options: ConstraintEvaluation, files: _Files, answers: Answers) -> _Scored:
    pairs = [(item, answers[item.prompt]) for item in files.items if item.prompt in answers]
    followed = [follow(item, response, options.reading) for item, response in pairs]
    outcomes = outcomes_by_prompt(pairs, options.reading) | outcomes_by_group(followed)
    levels, questions = _level_scores(options, files.evolutions, answers)
    for key, satisfied in levels.items():
        if satisfied is not None:
            outcomes.setdefault(f"hsr_level_{key.level}", {})[str(key)] = float(all(satisfied))
    return _Scored(followed, levels, questions, outcomes)


def _level_scores(
    options: ConstraintEvaluation, evolutions: Sequence[Evolution], answers: Answers
) -> tuple[dict[ItemKey, Satisfied | None], list[tuple[str, str]]]:
    levels: dict[ItemKey, Satisfied | None] = {}
    asked: dict[ItemKey, str] = {}
    for one in evolutions:
        for level in LEVELS:
            answer = answers.get(one.instructions[level])
            levels[one.key(level)] = None
            if answer is not None and one.has_rule:
                levels[one.key(level)] = rule_score(one, level, answer)
            elif answer is not None:
                asked[one.key(level)] = judge_question(one, level, answer)
    replies = _replies(options, list(asked.values()))
    for key, question in asked.items():
        if question in replies:
            levels[key] = read_reply(replies[question], key.level)
    open_ = [(str(key), question) for key, question in asked.items() if question not in replies]
    return levels, open_


def _replies(options: ConstraintEvaluation, questions: Sequence[str]) -> Answers:
    if options.judge_replies is not None:
        return _from_file(options.judge_replies, "question", "reply")
    if options.judge is None or not questions:
        return {}
    path = options.out / "judgments.jsonl"
    return _from_model(options.judge, questions, path, options.deadline_s)


def _with_answers(files: _Files, answers: Answers) -> Iterator[str]:
    for row, item in zip(files.rows, files.items, strict=True):
        if item.prompt in answers:
            yield _line(row | {"response": answers[item.prompt]})
    for one in files.evolutions:
        for level in LEVELS:
            prompt = one.instructions[level]
            if prompt in answers:
                key = str(one.key(level))
                yield _line({"key": key, "prompt": prompt, "response": answers[prompt]})


def _report(options: ConstraintEvaluation, files: _Files, scored: _Scored) -> dict[str, Any]:
    report: dict[str, Any] = {
        "files": [str(path) for path in options.files],
        "reading": options.reading,
        "answers_from": str(options.responses or (options.model and options.model.path)),
    }
    if files.items:
        report["ifeval"] = {
            "instructions": len(files.items),
            "answered": len(scored.followed),
            "reward_floor": mean_floor(files.items),
            "rates": {
                name: {"mean": sum(by.values()) / len(by), "instructions": len(by)}
                for name, by in scored.outcomes.items()
                if not name.startswith("hsr_")
            },
            "types": type_table(scored.followed),
        }
    if scored.levels:
        csl, groups, left_out = consecutive_levels(scored.levels)
        report["followbench"] = {
            "levels": level_table(scored.levels),
            "csl": csl,
            "csl_groups": groups,
            "csl_left_out": left_out,
            "by_rule": sum(one.has_rule for one in files.evolutions) * len(LEVELS),
            "without_reply": len(scored.questions),
        }
    return report


def _difficulty(scored: _Scored, options: ConstraintEvaluation) -> TypeDifficulty:
    counted = TypeDifficulty()
    for one in scored.followed:
        counted.note(
            options.policy_version, [stated.id for stated in one.item.constraints], one.strict
        )
    return counted


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
