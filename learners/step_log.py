"""``steps.jsonl``: what each optimizer step measured and which weights it made, to hold a replay
against.

::

    {"kind": "learner", "fence": 1, "environment": {...}, "settings": {...}}   before its first step
    {"kind": "step", "step": 1, "fence": 1, "metrics": {...}}                  once it is taken
    {"kind": "version", "version": 1, "fence": 1, "digest": "..."}             once it is published

Written by rank 0 of the learners, durably, a line at a time; numbers are written so that they are
read back bit for bit. Of a step that was taken again after a restart the line with the highest
fence counts. Nothing is read here.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from learners.disk import naming_the_disk
from safeladder.config import Config
from safeladder.records import StepReport, WeightManifest

STEPS = "steps.jsonl"
PACKAGES = ("torch", "transformers", "deepspeed")
CODE = "code of learners/"
CLOCKS = frozenset({"trained_tokens_per_s"})
"""Metrics that measure time; the others are a function of weights, batch and config."""
SETTINGS = {
    "run": ("seed", "deterministic"),
    "model": ("dtype",),
    "rollout": ("temperature", "max_new_tokens"),
    "schedule": ("max_staleness",),
    "placement": ("threads_per_actor",),
    "learner": None,
    "reference": None,
}
"""What an update depends on: keys of each section of the config; None: all of them."""


class StepLog:
    """Appends to the file; made by rank 0 once it trains."""

    def __init__(self, path: Path, config: Config, fence: int) -> None:
        self._path = path
        _end_last_line(path)
        self._append(
            {
                "kind": "learner",
                "fence": fence,
                "environment": environment(config.learner.ranks),
                "settings": settings(config),
            }
        )

    def took(self, report: StepReport, fence: int) -> None:
        """A step is taken; its weights are in memory only."""
        metrics = {name: value for name, value in report.metrics.items() if name not in CLOCKS}
        self._append({"kind": "step", "step": report.step, "fence": fence, "metrics": metrics})

    def published(self, manifest: WeightManifest) -> None:
        """A version is ready to be loaded."""
        self._append(
            {
                "kind": "version",
                "version": manifest.version,
                "fence": manifest.fence,
                "digest": manifest.digest,
            }
        )

    def _append(self, row: Mapping[str, Any]) -> None:
        """One write, so that lines of two threads do not mix."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with naming_the_disk(self._path):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def environment(ranks: int) -> dict[str, str]:
    """What the bits of a result depend on beside weights, batch and config."""
    return {
        "ranks": str(ranks),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        **{package: version(package) for package in PACKAGES},
        CODE: _code(),
    }


def _code() -> str:
    """Short digest of the source files of this room, and of the one that places images: an edit may
    change the order of a sum."""
    digest = hashlib.sha256()
    room = Path(__file__).parent
    for path in (*sorted(room.glob("*.py")), *sorted((room.parent / "vision").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def settings(config: Config) -> dict[str, Any]:
    """Dotted key → value of everything that an update depends on."""
    tree = config.model_dump(mode="json", include=set(SETTINGS))
    flat: dict[str, Any] = {}
    for section, names in SETTINGS.items():
        kept = {n: v for n, v in tree[section].items() if names is None or n in names}
        _flatten(section, kept, flat)
    return flat


def _flatten(place: str, value: Any, flat: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        flat[place] = value
        return
    for name, inner in value.items():
        _flatten(f"{place}.{name}", inner, flat)


def _end_last_line(path: Path) -> None:
    """What a killed writer left half written becomes a line of its own."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    if text and not text.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
