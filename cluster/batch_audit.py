"""The batches of a run against its ledger: what was trained is what the books say.

``batches/step-N.safetensors`` is written by the learner, from what it was about to train, the
ledger by the driver. Each sentence here is a disagreement of the two, or a batch that breaks a
promise by itself: a sample twice, a token too old, a sample with an INVALID verdict, a sibling that
nobody judged.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

from learners.batches import UNREADABLE, batch_path
from safeladder.paths import refuse_pipe
from safeladder.records import VerdictStatus


@dataclass(slots=True)
class BatchAudit:
    """What came of the comparison."""

    num_compared: int = 0
    missing: list[int] = field(default_factory=list)
    """Trained steps whose batch is not there (any more)."""
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Batch:
    sample_ids: list[str]
    verdicts: list[dict[str, str]]
    oldest_version: int


def audit_batches(
    folder: Path,
    trained: Mapping[int, Collection[str]],
    *,
    group_size: int,
    max_staleness: int,
) -> BatchAudit:
    """Hold the batch of every trained step against the groups (``epoch/ordinal``) that the ledger
    says it trained."""
    found = BatchAudit()
    for step in sorted(trained):
        path = batch_path(folder, step)
        if not path.exists():
            found.missing.append(step)
            continue
        try:
            batch = _read(path)
        except UNREADABLE as error:
            found.violations.append(f"{path.name} cannot be read ({error})")
            continue
        found.num_compared += 1
        faults = _faults(batch, set(trained[step]), group_size)
        found.violations += [f"{path.name}: {fault}" for fault in faults]
        if (staleness := step - 1 - batch.oldest_version) > max_staleness:
            found.violations.append(
                f"{path.name}: a token is {staleness} versions old, {max_staleness} are allowed"
            )
    return found


def _faults(batch: _Batch, trained: set[str], group_size: int) -> Iterator[str]:
    ids = set(batch.sample_ids)
    groups = {_group(sample) for sample in ids}
    if len(ids) != len(batch.sample_ids):
        yield "it holds a sample twice"
    if strangers := groups - trained:
        yield f"it holds {_few(strangers)}, which the ledger does not say that it trained"
    if lacking := trained - groups:
        yield f"it lacks {_few(lacking)}, which the ledger says that it trained"
    invalid = {v["sample_id"] for v in batch.verdicts if v["status"] == VerdictStatus.INVALID}
    if taken := ids & invalid:
        yield f"it trained {_few(taken)}, in spite of an INVALID verdict"
    judged = {v["sample_id"] for v in batch.verdicts}
    siblings = {f"{group}/{index}" for group in groups for index in range(group_size)}
    if unknown := ids - siblings:
        yield f"it holds {_few(unknown)}, but a group has {group_size} samples"
    if batch.verdicts and (unjudged := siblings - judged):
        yield f"it has no verdict of {_few(unjudged)}: a group is trained whole or not at all"


def _read(path: Path) -> _Batch:
    """Ids, verdicts and the oldest token; the other arrays are not read."""
    refuse_pipe(path)
    with safe_open(path, framework="numpy") as file:
        metadata: dict[str, str] = file.metadata()
        versions = file.get_tensor("token_versions")
    texts = json.loads(metadata["audit"])
    return _Batch(
        json.loads(metadata["sample_ids"]),
        [verdict for text in texts for verdict in json.loads(text)],
        int(versions.min()),
    )


def _group(sample_id: str) -> str:
    return sample_id.rpartition("/")[0]


def _few(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
