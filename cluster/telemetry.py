"""What the driver knows of a run, gathered into one row for each step: to the monitor, the terminal
and ``status.json``. Decides nothing, and keeps no more than sums."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from cluster.coordinator import Coordinator
from cluster.fleet import Lost
from cluster.fleet_usage import FleetUsage
from cluster.live import write_live
from cluster.monitor_link import MonitorLink
from cluster.panel import Panel
from cluster.probe_log import Round
from cluster.protocol import Alert, PauseTraining, ResumeTraining, VerdictsTaken
from cluster.remote import fetch
from cluster.run_directory import RunDirectory, Status
from cluster.terminal import Terminal
from cluster.time_account import TimeAccount
from cluster.transitions import DropReason
from safeladder.commit_points import reached
from safeladder.config import Config
from safeladder.records import GroupHeader, StepReport, TrainOrder

FETCH_DEADLINE_S = 30.0
SAMPLES_IN_A_TABLE = 8
VIEW_EVERY_S = 1.0


class Telemetry:
    """Fed by the loop; see each method for what it adds."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        monitor: MonitorLink,
        terminal: Terminal,
        *,
        pid: int,
        fence: int,
    ) -> None:
        self._config = config
        self._directory = directory
        self._monitor = monitor
        self._terminal = terminal
        self._pid = pid
        self._fence = fence
        self._tokens = 0
        self._generate_s = 0.0
        self._stopped: tuple[int, ...] = ()
        """Tokens of each surplus sample since the last step."""
        self._invalid: Counter[str] = Counter()
        self._filtered: int | None = None
        """Groups dropped for equal rewards up to the last step, earlier drivers' included."""
        self._disagreements: defaultdict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
        """Principle → verdicts of a quorum since the last step, and the sum of theirs."""
        self._canaries: dict[str, float] = {}
        self._generation = 0
        self._verdict_rows: list[dict[str, Any]] = []
        self._told: list[tuple[TrainOrder, StepReport, dict[str, float]]] = []
        self._last_step_at = time.monotonic()
        self._account = TimeAccount(self._last_step_at)
        self._last_view_at = 0.0
        self.tokens_total = 0
        self.actors_lost = 0
        self.usage = FleetUsage()
        """Of the rollout fleets."""
        self._version = 0

    def generated(self, header: GroupHeader) -> None:
        """A group came from an engine; the slowest since the last step is kept."""
        self._tokens += sum(header.lengths)
        self._stopped += header.stopped
        self._generate_s = max(self._generate_s, header.generate_s)
        self.tokens_total += sum(header.lengths)
        self.usage.generated(header, max(self._version, header.max_version))

    def actor_lost(self, fleet: str, lost: Lost) -> None:
        """An actor died or was given up."""
        self.actors_lost += 1
        self.alert("actor", f"{fleet}: {lost.actor} is lost ({lost.reason}); replacing it")

    def alert(self, kind: str, text: str) -> None:
        """Something a person should see."""
        self._terminal.say(f"! {text}")
        self._monitor.send("alert", kind=kind, text=text)

    def canaries(self, principle: str, wrong: int) -> None:
        """A round of canaries came back."""
        self._canaries[f"canary/{principle}_wrong"] = float(wrong)

    def panel_in_force(self, panel: Panel, versions: Mapping[str, str]) -> None:
        """Who judges from now on, and what makes a reward: marked in the verdict log, so that
        every reward can be computed again from what stands there."""
        self._generation = panel.generation
        mark = {
            "event": "principles",
            "fence": self._fence,
            "generation": panel.generation,
            "unix_s": time.time(),
            "verifiers": dict(versions),
            "routes": {name: dict(weights) for name, weights in panel.config.routes.items()},
            "reward": panel.config.reward.model_dump(mode="json"),
        }
        self._verdict_rows.append(mark)

    def panel_changed(self, panel: Panel, versions: Mapping[str, str], text: str) -> None:
        """A hot swap is in force: marked in the verdict log, in W&B and on the terminal."""
        self.panel_in_force(panel, versions)
        self._canaries = {}
        self.alert("principles", text)

    def ends_early(self, last_step: int) -> None:
        """The run ends with this step."""
        self._terminal.say(f"the run ends with step {last_step}")

    def probed(self, found: Round) -> None:
        """A round of held-out probes is over."""
        values = {f"eval/{name}": value for name, value in found.values.items()}
        self._monitor.send("record", kind="eval", values={"eval/step": found.step, **values})
        text = ", ".join(f"{name} {value:.3f}" for name, value in found.values.items())
        self._terminal.say(f"probes at step {found.step}: {text or 'no value'}")

    def notice(self, command: Alert | PauseTraining | ResumeTraining | VerdictsTaken) -> None:
        """What the coordinator wants people to know."""
        if isinstance(command, VerdictsTaken):
            self._scored(command)
        elif isinstance(command, Alert):
            self.alert(command.kind, command.text)
        elif isinstance(command, PauseTraining):
            self.alert("pause", f"training is paused: {command.reason}")
        else:
            self._terminal.say("training goes on")

    def trained(self, order: TrainOrder, report: StepReport, coordinator: Coordinator) -> None:
        """The learner reports a step. It is told to others at the end of the turn, when the ledger
        has it: a driver that has been replaced must not tell."""
        reached("step.told", report.step)
        now = time.monotonic()
        elapsed, self._last_step_at = now - self._last_step_at, now
        rewards = [r for group in order.groups for r in group.rewards if r is not None]
        row: dict[str, float] = {
            "train/step": report.step,
            "rollout/version": report.version,
            "reward/mean": sum(rewards) / len(rewards),
            "time/step_s": elapsed,
            "time/train_s": report.seconds,
            "time/generate_s": self._generate_s,
            "rollout/tokens_per_s": self._tokens / max(elapsed, 1e-9),
        }
        self._account.look(now, coordinator.glance())
        row |= self._account.close_step(report.seconds) | coordinator.lives.drain()
        row["reward/generation"] = float(self._generation)
        row |= coordinator.constraints.metrics
        row |= self._canaries
        row |= self.usage.row(elapsed)
        row |= coordinator.asking.metrics
        self._version = report.version
        row |= {f"reward/{k}": v for k, v in _principle_means(order).items()}
        row |= {f"train/{k}": v for k, v in report.metrics.items()}
        row |= {f"invalid/{k}": float(v) for k, v in self._invalid.items()}
        row |= {f"disagreement/{k}": total / n for k, (n, total) in self._disagreements.items()}
        self._disagreements.clear()
        status = coordinator.status()
        row |= {f"dropped/{k}": float(v) for k, v in status.dropped_by_reason.items()}
        filtered = status.dropped_by_reason.get(DropReason.FILTERED, 0)
        since, self._filtered = filtered - (self._filtered or 0), filtered
        row["rollout/filtered_share"] = since / (since + len(order.groups))
        row["rollout/continued"] = float(status.continued)
        row["rollout/begun_anew"] = float(status.begun_anew)
        if self._config.rollout.oversample:
            row["rollout/stopped_tokens"] = float(sum(self._stopped))
            row["rollout/stopped_length"] = sum(self._stopped) / max(len(self._stopped), 1)
        self._tokens, self._generate_s, self._stopped = 0, 0.0, ()
        self._told.append((order, report, row))

    def _tell(self, order: TrainOrder, report: StepReport, row: dict[str, float]) -> None:
        self._monitor.send("record", kind="train", values=row)
        self._terminal.step(row)
        self._directory.write_status(
            Status(state="running", pid=self._pid, step=report.step, version=report.version)
        )
        if report.step % self._config.monitor.samples_every == 0 or report.step == 1:
            self._monitor.send("samples", step=report.step, rows=self._sample_rows(order))

    def turn(self, coordinator: Coordinator) -> None:
        """One turn of the loop is over, and in the ledger: deliver, and refresh the view once a
        second."""
        if self._filtered is None:
            dropped = coordinator.status().dropped_by_reason
            self._filtered = dropped.get(DropReason.FILTERED, 0)
        told, self._told = self._told, []
        for step in told:
            self._tell(*step)
        if self._verdict_rows:
            self._monitor.send("verdicts", rows=self._verdict_rows)
            self._verdict_rows = []
        now = time.monotonic()
        self._account.look(now, coordinator.glance())
        if now - self._last_view_at > VIEW_EVERY_S:
            self._last_view_at = now
            status = coordinator.status()
            self._terminal.refresh(status)
            write_live(self._directory, status)
        self._monitor.pump()
        self.tell_notices()

    def tell_notices(self) -> None:
        """What the monitor wants people to know, such as that W&B went offline."""
        for text in self._monitor.take_notices():
            self.alert("monitor", text)

    def _scored(self, taken: VerdictsTaken) -> None:
        """Each verdict goes into the log with what its reward is to be computed by. Quorums are
        measured on all groups: those that are trained disagree less, or they were dropped."""
        place: dict[str, Any] = {
            "attempt": taken.attempt,
            "call": taken.call,
            "route": taken.route,
            "fence": self._fence,
            "generation": taken.generation,
        }
        place |= {"factors": dict(taken.factors)} if taken.factors else {}
        for verdict in taken.verdicts:
            self._verdict_rows.append(verdict.as_row() | place)
            if verdict.cause is not None:
                self._invalid[f"{verdict.principle}/{verdict.cause}"] += 1
            if verdict.disagreement is not None:
                num, total = self._disagreements[verdict.principle]
                self._disagreements[verdict.principle] = num + 1, total + verdict.disagreement

    def _sample_rows(self, order: TrainOrder) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for group in order.groups[:SAMPLES_IN_A_TABLE]:
            try:
                completion = (payload := fetch(group.payload, FETCH_DEADLINE_S)).completions[0]
            except KeyError:
                continue
            sample_id = f"{group.key}/0"
            verdicts = [v for v in json.loads(group.audit) if v["sample_id"] == sample_id]
            rows.append(
                {
                    "sample_id": sample_id,
                    "version": min(completion.token_versions.tolist(), default=None),
                    "prompt": payload.prompt.messages[-1].content,
                    "response": completion.text,
                    "reward": group.rewards[0],
                    "verdicts": {v["principle"]: v["label"] or v["score"] for v in verdicts},
                    "disagreement": {
                        v["principle"]: v["disagreement"]
                        for v in verdicts
                        if v["disagreement"] is not None
                    },
                }
            )
        return rows


def _principle_means(order: TrainOrder) -> Mapping[str, float]:
    """Mean score of each principle over the OK verdicts of a batch, from its audit texts."""
    scores: dict[str, list[float]] = {}
    for group in order.groups:
        for verdict in json.loads(group.audit):
            if verdict["status"] == "ok":
                scores.setdefault(verdict["principle"], []).append(verdict["score"])
    return {name: sum(values) / len(values) for name, values in sorted(scores.items())}
