"""What a person sees while a run goes on: a live table in a terminal, one line a step elsewhere.

Shows rows that it is given; it keeps the last few and computes nothing but who waited for whom.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.coordinator_status import CoordinatorStatus, EngineStatus
from safeladder.fleet_config import fleet_of

ROWS = 8
"""Steps in the live table."""
BUSY_SHARE = 0.9
"""A learner that trains for this share of a step is what the others wait for."""

NO_PRINCIPLES = ("reward/mean", "reward/generation")
"""Columns beside the means of the principles: what is trained, and which panel judged it."""

Row = Mapping[str, float]


class Terminal:
    """One view of one run. ``close`` gives the terminal back."""

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        self._total_steps = total_steps
        self._started = time.monotonic()
        self._rows: deque[Row] = deque(maxlen=ROWS)
        self._status = ""
        self._stream = stream
        self._live: Live | None = None
        self._console: Console | None = None
        if stream.isatty():
            self._console = Console(file=stream, highlight=False, markup=False)

    def say(self, text: str) -> None:
        """One sentence of progress, with the seconds since the start."""
        line = f"[{time.monotonic() - self._started:6.0f} s] {text}"
        if self._console is not None:
            self._console.print(line)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def step(self, row: Row) -> None:
        """A committed step: ``train/step``, ``rollout/version``, ``reward/<principle>``, …"""
        self._rows.append(row)
        if self._console is None:
            self.say(step_line(row, self._total_steps))
        else:
            self._show()

    def refresh(self, status: CoordinatorStatus) -> None:
        """What the coordinator is doing now; shown in a terminal only."""
        self._status = describe_status(status)
        if self._console is not None and self._rows:
            self._show()

    def close(self) -> None:
        """Leave the last view standing and give the cursor back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        table = step_table(list(self._rows), self._total_steps)
        below = "\n".join(filter(None, (who_waits(self._rows[-1]), self._status)))
        self._live.update(Group(table, Text(below, "dim")), refresh=True)


def step_line(row: Row, total_steps: int) -> str:
    """One step in one line."""
    cells = _cells(row, total_steps)
    rewards = ", ".join(f"{name} {value}" for name, value in _rewards(row).items())
    parts = [
        f"step {cells['step']}",
        f"version {cells['version']}",
        _outcome(cells, rewards),
        *(f"{name} {cells[name]}" for name in ("staleness", "KL", "dropped") if cells[name]),
        *(f"{cells[name]} {name}" for name in ("tokens/s", "s") if cells[name]),
        who_waits(row),
    ]
    return " · ".join(filter(None, parts))


def _outcome(cells: Mapping[str, str], rewards: str) -> str:
    if "loss" in cells:
        return f"loss {cells['loss']}"
    return f"reward {cells['reward']}" + (f" ({rewards})" if rewards else "")


def step_table(rows: list[Row], total_steps: int) -> Table:
    """The last steps, newest below; one column for each principle."""
    principles = sorted({name for row in rows for name in _rewards(row)})
    lines = [{**_cells(row, total_steps), **_rewards(row)} for row in rows]
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (*_cells(rows[-1], total_steps), *principles):
        width = max(len(line.get(name, "")) for line in lines)
        table.add_column(name, justify="right", min_width=width, overflow="fold")
    for line in lines:
        table.add_row(*(line.get(str(column.header), "") for column in table.columns))
    return table


def describe_status(status: CoordinatorStatus) -> str:
    """Groups by state, drops by reason, and who waits for whom, now."""
    states = ", ".join(f"{count} {state}" for state, count in status.counts.items() if count)
    drops = ", ".join(f"{count} {reason}" for reason, count in status.dropped_by_reason.items())
    parts = [f"groups: {states}" if states else "", f"dropped: {drops}" if drops else ""]
    return "\n".join(filter(None, (*parts, describe_engines(status.engines), *status.waits)))


def describe_engines(engines: Sequence[EngineStatus]) -> str:
    """Each fleet in a few words; empty if there is but one engine."""
    if len(engines) < 2:
        return ""
    fleets: defaultdict[str, list[EngineStatus]] = defaultdict(list)
    for engine in engines:
        fleets[fleet_of(engine.name)].append(engine)
    parts = []
    for name, members in fleets.items():
        held, most = sum(e.leases for e in members), sum(e.capacity for e in members)
        shares = [e.load.kv_share for e in members if e.load is not None]
        cache = f", cache {100 * sum(shares) / len(shares):.0f} % full" if shares else ""
        plural = "" if len(members) == 1 else "s"
        parts.append(f"{name}: {len(members)} engine{plural}, {held} of {most} groups{cache}")
    return "\n".join(parts)


def who_waits(row: Row) -> str:
    """Whether the learner or the generation was the slower side of a step."""
    step_s, train_s = row.get("time/step_s", 0.0), row.get("time/train_s", 0.0)
    if step_s <= 0 or is_stage(row):
        return ""
    if train_s / step_s >= BUSY_SHARE:
        return "rollouts wait for the learner"
    return f"learner waited {step_s - train_s:.1f} s for groups"


def _cells(row: Row, total_steps: int) -> dict[str, str]:
    """Name → text of one step; empty where the row does not say."""
    dropped = sum(value for name, value in row.items() if name.startswith("dropped/"))
    return {
        "step": f"{row.get('train/step', 0):.0f}/{total_steps}",
        "version": _number(row, "rollout/version", ".0f"),
        "staleness": _staleness(row),
        "KL": _number(row, _kl_name(row), ".4f"),
        "tokens/s": _number(row, "rollout/tokens_per_s", ".0f"),
        "s": _number(row, "time/step_s", ".1f"),
        "dropped": f"{dropped:.0f}" if dropped else "",
        **({"loss": _number(row, "train/loss", ".4f")} if is_stage(row) else _reward(row)),
    }


def is_stage(row: Row) -> bool:
    """Whether a step passed over rows of a file, with no rollouts beside it."""
    return "train/epoch" in row


def _reward(row: Row) -> dict[str, str]:
    return {"reward": _number(row, "reward/mean", ".2f")}


def _rewards(row: Row) -> dict[str, str]:
    return {
        name.removeprefix("reward/"): f"{value:.2f}"
        for name, value in row.items()
        if name.startswith("reward/") and name not in NO_PRINCIPLES
    }


def _number(row: Row, name: str, form: str) -> str:
    return format(row[name], form) if name in row else ""


def _staleness(row: Row) -> str:
    mean = _number(row, "train/staleness_mean", ".1f")
    most = _number(row, "train/staleness_max", ".0f")
    return f"{mean}≤{most}" if mean and most else mean or most


def _kl_name(row: Row) -> str:
    """The KL to the reference if the step has one, else the first KL of the learner."""
    names = sorted(name for name in row if "kl" in name.rpartition("/")[2].split("_"))
    return next((name for name in names if "reference" in name), names[0] if names else "")
