"""The account of a run by those who were there: did it keep the accounting promise?

Reads what the verifiers judged (their own append-only logs), every batch that ever stood in the
run's folder (hard links, in order of appearance), the commit points that the processes of the run
came by, the checkpoints, and bare facts of the ledger by SQL. It uses none of the code of
``cluster`` and ``learners`` that keeps these accounts.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

STATES = ("leased", "generated", "scored", "admitted", "trained", "dropped")
LASTING = frozenset(
    [*(f"{state}.committed" for state in STATES), "summary.written", "run.finished"]
)
"""Points behind a driver's write that others will read."""


@dataclass(frozen=True)
class Batch:
    """One step's batch as it stands on disk."""

    step: int
    fence: int
    rewards: dict[str, float]
    """Sample → what it was trained with."""
    statuses: frozenset[str]
    """Of the verdicts beside it."""
    oldest_version: int

    @property
    def groups(self) -> set[str]:
        return {sample.rpartition("/")[0] for sample in self.rewards}


@dataclass
class Findings:
    """What was found; a sound run has numbers of 0 and no violation."""

    lost: int = 0
    trained_twice: int = 0
    stale_writes_accepted: int = 0
    violations: list[str] = field(default_factory=list)

    def __iadd__(self, other: Findings) -> Findings:
        self.lost += other.lost
        self.trained_twice += other.trained_twice
        self.stale_writes_accepted += other.stale_writes_accepted
        self.violations += other.violations
        return self


def check_finished(run: Path, witness: Path, *, groups_per_step: int, bound: int) -> Findings:
    """Everything that must be true of a run that has come to its end."""
    found = check_fences(run, witness)
    steps = int(json.loads((run / "summary.json").read_text())["steps"])
    batches = _batches(run, steps, found)
    _check_fates(run, witness, batches, groups_per_step, found)
    said = scores_said(witness)
    for batch in batches.values():
        _check_batch(batch, said, bound, found)
    newest = max(checkpoints(run), key=lambda m: (m["fence"], m["step"]))
    if (newest["step"], newest["num_updates"]) != (steps, steps):
        text = f"the last checkpoint has {newest['num_updates']} updates for {steps} steps"
        found.violations.append(text)
    return found


def check_going_on(run: Path, witness: Path, *, groups_per_step: int, bound: int) -> Findings:
    """What must be true of a run whose driver is gone, as far as its newest checkpoint."""
    found = check_fences(run, witness)
    whole = [m for m in checkpoints(run) if is_intact(run, m["step"])]
    steps = max(whole, key=lambda m: (m["fence"], m["step"]))["step"] if whole else 0
    batches = _batches(run, steps, found)
    _check_fates(run, witness, batches, groups_per_step, found, is_finished=False)
    said = scores_said(witness)
    for batch in batches.values():
        _check_batch(batch, said, bound, found)
    return found


def is_intact(run: Path, step: int) -> bool:
    """Whether every file of a checkpoint has the SHA-256 that its manifest says."""
    folder = run / "checkpoints" / f"step-{step}"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return all(
        (folder / name).exists()
        and hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected
        for name, expected in files.items()
    )


def check_fences(run: Path, witness: Path) -> Findings:
    """What must be true at any time: nobody wrote after he was replaced, and no learner took a step
    but the one after its last."""
    found = Findings()
    stale = [f"ledger row {row}" for row in _stale_rows(run)]
    stale += [f"{p['point']} of process {p['pid']}" for p in _stale_commits(points(witness))]
    stale += [f"batch {name}" for name in _stale_batches(witness)]
    found.stale_writes_accepted = len(stale)
    found.violations += [f"a replaced driver wrote: {text}" for text in stale]
    for pid, steps in _steps_by_learner(witness).items():
        if steps != list(range(steps[0], steps[0] + len(steps))):
            found.violations.append(f"learner {pid} took the steps {steps}")
    return found


def _batches(run: Path, steps: int, found: Findings) -> dict[int, Batch]:
    """Step → its batch, for the first ``steps``; one that is not there is a violation."""
    batches: dict[int, Batch] = {}
    for step in range(1, steps + 1):
        path = run / "batches" / f"step-{step}.safetensors"
        if path.exists():
            batches[step] = read_batch(path, step)
        else:
            found.violations.append(f"step {step} has no batch")
    return batches


def _check_fates(
    run: Path,
    witness: Path,
    batches: dict[int, Batch],
    groups_per_step: int,
    found: Findings,
    *,
    is_finished: bool = True,
) -> None:
    times = Counter(group for batch in batches.values() for group in batch.groups)
    twice = sorted(group for group, count in times.items() if count > 1)
    found.trained_twice = len(twice)
    found.violations += [f"{group} is in {times[group]} batches" for group in twice]
    for step, batch in batches.items():
        if len(batch.groups) != groups_per_step:
            found.violations.append(f"step {step} has {len(batch.groups)} groups")
    states = ledger_states(run)
    dropped = {group for group, (state, reason) in states.items() if state == "dropped" and reason}
    frontier = _last_of_each_epoch({*times, *dropped})
    waiting = {group for group, (state, _) in states.items() if state == "pending"}
    pending = {group for group in waiting if _place(group)[1] > frontier.get(_place(group)[0], -1)}
    if not is_finished:  # what is beyond the last checkpoint is still to come
        beyond = states.keys() - times.keys() - dropped
        states = {g: ("pending", None) if g in beyond else s for g, s in states.items()}
        pending |= beyond
    asked = issued(witness)
    lost = sorted(asked - times.keys() - dropped - pending)
    found.lost = len(lost)
    found.violations += [f"{group} was asked for, and has no end" for group in lost]
    for group in sorted(times.keys() & (dropped | pending)):
        found.violations.append(f"{group} is trained, the ledger says {states[group][0]}")
    for group in sorted(g for g, (s, _) in states.items() if s == "trained" and g not in times):
        found.violations.append(f"{group} is trained, says the ledger; it is in no batch")


def _check_batch(
    batch: Batch, said: dict[str, set[float | None]], bound: int, found: Findings
) -> None:
    staleness = batch.step - 1 - batch.oldest_version
    if staleness > bound:
        found.violations.append(f"step {batch.step} trained tokens of staleness {staleness}")
    if "invalid" in batch.statuses:
        found.violations.append(f"step {batch.step} trained an INVALID sample")
    for sample, reward in batch.rewards.items():
        if not math.isfinite(reward) or reward not in said.get(sample, set()):
            text = f"{sample} is trained with {reward}; its verifier said {said.get(sample)}"
            found.violations.append(text)


# ---- what the witnesses left --------------------------------------------------------------------


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a log; a last line that is half written is not there yet."""
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield json.loads(line)


def points(witness: Path) -> list[dict[str, Any]]:
    """All commit points that processes of the run came by, in order."""
    return list(lines(witness / "points"))


def scores_said(witness: Path) -> dict[str, set[float | None]]:
    """Sample → what its verifier said of it, in any attempt; None for INVALID."""
    said: defaultdict[str, set[float | None]] = defaultdict(set)
    for log in witness.glob("*.judged"):
        for row in lines(log):
            said[row["sample_id"]].add(row["score"])
    return said


def issued(witness: Path) -> set[str]:
    """Groups that the verifiers saw, and all that must have been issued before the last of them."""
    parts = [sample.split("/") for sample in scores_said(witness)]
    groups = {f"{p[0]}/{p[1]}" for p in parts if len(p) == 3 and "".join(p).isdecimal()}
    last = _last_of_each_epoch(groups)  # without held-out answers, which have other names
    return {f"{epoch}/{n}" for epoch, ordinal in last.items() for n in range(ordinal + 1)}


def _place(group: str) -> tuple[int, int]:
    epoch, _, ordinal = group.partition("/")
    return int(epoch), int(ordinal)


def _last_of_each_epoch(groups: set[str]) -> dict[int, int]:
    """Epoch → its last ordinal among ``groups``."""
    return dict(sorted(map(_place, groups)))


def read_batch(path: Path, step: int) -> Batch:
    """The batch of a step, from its file alone."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        rewards, versions = file.get_tensor("rewards"), file.get_tensor("token_versions")
    verdicts = [v for text in json.loads(metadata["audit"]) for v in json.loads(text)]
    return Batch(
        step=step,
        fence=int(metadata["fence"]),
        rewards=dict(zip(json.loads(metadata["sample_ids"]), map(float, rewards), strict=True)),
        statuses=frozenset(v["status"] for v in verdicts),
        oldest_version=int(versions.min()),
    )


def checkpoints(run: Path) -> list[dict[str, Any]]:
    """Manifests of the checkpoints that are there."""
    return [json.loads(p.read_text()) for p in (run / "checkpoints").glob("step-*/manifest.json")]


def ledger_states(run: Path) -> dict[str, tuple[str, str | None]]:
    """Group → state and reason."""
    rows = query(run, "SELECT epoch || '/' || ordinal, state, reason FROM groups")
    return {group: (state, reason) for group, state, reason in rows}


def query(run: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of the run's ledger; none before it is there."""
    if not (run / "ledger.sqlite").exists():
        return []
    connection = sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(sql).fetchall()
    except sqlite3.OperationalError:  # its tables are being made
        return []
    finally:
        connection.close()


def _stale_rows(run: Path) -> list[int]:
    stale, newest = [], 0
    for row, fence in query(run, "SELECT id, fence FROM history ORDER BY id"):
        if fence < newest:
            stale.append(row)
        newest = max(newest, fence)
    return stale


def _stale_commits(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Commits of drivers that had been replaced by then."""
    fences: dict[int, int] = {}
    for row in rows:
        if row["point"] == "fence.committed":
            fences[row["pid"]] = int(row["detail"])
        elif row["point"] in LASTING and fences.get(row["pid"], 0) < max(
            fences.values(), default=0
        ):
            yield row


def _stale_batches(witness: Path) -> Iterator[str]:
    newest: dict[int, int] = {}
    for path in sorted((witness / "batches").glob("*.safetensors")):
        step = int(path.stem.rpartition("-")[2])
        fence = read_batch(path, step).fence
        if fence < newest.get(step, 0):
            yield path.name
        newest[step] = max(fence, newest.get(step, 0))


def _steps_by_learner(witness: Path) -> dict[int, list[int]]:
    taken: defaultdict[int, list[int]] = defaultdict(list)
    for row in points(witness):
        if row["point"] == "optimizer.stepped":
            taken[row["pid"]].append(int(row["detail"]))
    return taken
