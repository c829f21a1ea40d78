"""What a run has to show: the held-out answers of each stage, the table before and after, the
summary and the report.

Answers are written to ``evaluation/<stage>.jsonl`` as they come, so that a resumed run compares
with the same base, and a reader can check every rate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cluster.coordinator import Coordinator
from cluster.evaluation import HeldOutAnswer
from cluster.history import read_history, read_lines
from cluster.report import print_summary, write_report, write_summary
from cluster.run_directory import RunDirectory
from cluster.step_gap import step_gap
from cluster.telemetry import Telemetry
from evals.detector import ResponseDetector
from evals.held_out import KINDS, Change, JudgedAnswer, Outcomes, compare, judge
from evals.ifeval import item_of, mean_floor, outcomes_by_prompt
from evals.standing import standing
from safeladder.config import Config
from safeladder.records import InvalidCause, Prompt, Verdict, VerdictStatus
from safeladder.whole_file import replace_file

STAGES = ("before", "after_sft", "after")


class Results:
    """Collects the stages of one run."""

    def __init__(self, config: Config, directory: RunDirectory, held_out: Sequence[Prompt]) -> None:
        self._config = config
        self._directory = directory
        self._held_out = {prompt.id: prompt for prompt in held_out}
        self._detector: ResponseDetector | None = None
        self._outcomes = {
            stage: self._judge(answers)
            for stage in STAGES
            if (answers := self._read(self._file(stage)))
        }

    def has(self, stage: str) -> bool:
        """Whether the answers of a stage are there, of an earlier start too."""
        return stage in self._outcomes

    def add(self, stage: str, answers: Sequence[HeldOutAnswer]) -> None:
        """Write the answers of a stage and judge them."""
        judged = [
            JudgedAnswer(
                prompt=a.prompt,
                response=a.completion.text,
                finish_reason=a.completion.finish_reason,
                verdicts=a.verdicts,
            )
            for a in answers
        ]
        file = self._file(stage)
        file.parent.mkdir(exist_ok=True)
        rows = (json.dumps(_row(answer), ensure_ascii=False) + "\n" for answer in judged)
        replace_file(file, rows)  # half of a stage would be compared as if it were all of it
        self._outcomes[stage] = self._judge(judged)

    def describe(self, stage: str) -> str:
        """The rates of one stage in one line."""
        means = {name: sum(v.values()) / len(v) for name, v in self._outcomes[stage].items()}
        return ", ".join(f"{name} {100 * value:.1f} %" for name, value in means.items())

    def table(self) -> dict[str, Change]:
        """Metric → before, after the supervised rung, after RL, interval; empty until there are
        two stages to compare."""
        if not {"before", "after"} <= self._outcomes.keys():
            return {}
        return compare(
            self._outcomes["before"],
            self._outcomes["after"],
            self._outcomes.get("after_sft"),
            seed=self._config.run.seed,
        )

    def figures(self) -> dict[str, Any]:
        """The table, and how the policy stands, all told; empty until there is a table."""
        table = self.table()
        return {**table, "standing": standing(table)} if table else {}

    def outcomes(self, stage: str) -> Outcomes:
        """Of a stage that is there, prompt by prompt; empty for one that is not."""
        return self._outcomes.get(stage, {})

    def summarize(
        self,
        coordinator: Coordinator,
        telemetry: Telemetry,
        *,
        ended: Mapping[str, Any],
        verifiers: Mapping[str, str],
        wall_s: float,
        peak_pss_bytes: int,
    ) -> dict[str, Any]:
        """Write ``summary.json`` and return it."""
        status = coordinator.status()
        summary: dict[str, Any] = {
            "run": self._config.run.name,
            **self.figures(),
            "steps": coordinator.last_step,
            **ended,
            "staleness_max": status.staleness_max,
            "groups_trained": status.counts.get("trained", 0),
            "groups_dropped": dict(status.dropped_by_reason),
            "late_results": status.late_results,
            "failed_attempts": status.failed_attempts,
            "actors_lost": telemetry.actors_lost,
            "tokens_generated": telemetry.tokens_total,
            "fleets": telemetry.usage.summary(),
            "verifiers": dict(verifiers),
            "wall_s": round(wall_s, 1),
            "peak_pss_bytes": peak_pss_bytes,
        }
        items = [item for prompt in self._held_out.values() if (item := item_of(prompt))]
        if items:
            summary["reward_floor"] = mean_floor(items)
        gap = step_gap(read_history(self._directory.path).get("train", []))
        if gap is not None:
            summary["speed"] = gap.as_summary()
        write_summary(self._directory, summary)
        return summary

    def report(self, summary: Mapping[str, Any], stream: TextIO) -> Path:
        """Write ``report.html`` and print the summary table; returns the report's path."""
        print_summary(summary, stream)
        return write_report(self._directory, redact=self._config.monitor.redact_samples)

    def _judge(self, answers: Sequence[JudgedAnswer]) -> Outcomes:
        scores: Outcomes = {}
        for answer in answers:
            for principle, verdict in answer.verdicts.items():
                if verdict.score is not None:
                    scores.setdefault(f"score/{principle}", {})[answer.prompt.id] = verdict.score
        asked = [(item, a.response) for a in answers if (item := item_of(a.prompt)) is not None]
        scores |= outcomes_by_prompt(asked)
        if any(answer.prompt.meta.get("kind") not in KINDS for answer in answers):
            return scores
        self._detector = self._detector or ResponseDetector.fit()
        evaluation = self._config.evaluation
        rates = judge(
            answers,
            self._detector,
            safety=evaluation.safety_principle,
            correctness=evaluation.correctness_principle,
        )
        return rates | scores

    def _file(self, stage: str) -> Path:
        return self._directory.evaluation / f"{stage}.jsonl"

    def _read(self, file: Path) -> list[JudgedAnswer]:
        return [
            JudgedAnswer(
                prompt=self._held_out[row["prompt_id"]],
                response=row["response"],
                finish_reason=row["finish_reason"],
                verdicts={name: _verdict(fields) for name, fields in row["verdicts"].items()},
            )
            for row in read_lines(file)
            if row["prompt_id"] in self._held_out
        ]


def _verdict(fields: Mapping[str, Any]) -> Verdict:
    cause = fields["cause"]
    return Verdict(
        **{
            **fields,
            "status": VerdictStatus(fields["status"]),
            "cause": InvalidCause(cause) if cause else None,
        }
    )


def _row(answer: JudgedAnswer) -> dict[str, Any]:
    return {
        "prompt_id": answer.prompt.id,
        "kind": answer.prompt.meta.get("kind"),
        "prompt": answer.prompt.messages[-1].content,
        "response": answer.response,
        "finish_reason": answer.finish_reason,
        "verdicts": {name: verdict.as_row() for name, verdict in answer.verdicts.items()},
    }
