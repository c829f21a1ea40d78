"""Reward functions that misbehave on purpose, in verl's convention, one for each way out of a box.

``compute_score`` is the function under test: ``ground_truth`` names the attack. The sample
``honest`` is judged after each attack by the same function: 0.25 if nothing of the attack is left,
0.75 if something is. An attack whose success only the function itself can see returns 1 for it;
every other attack returns 0.5 if it gets as far as returning. Hostile attacks refuse to run unless
the first process they see is a sandbox.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.abuse import attacks_on_scores, attacks_on_the_machine
from tests.abuse.attack_registry import ATTACKS, Info

MODULES = (attacks_on_the_machine, attacks_on_scores)
"""Importing them fills the list."""
_ORIGINALS = (
    json.dumps,
    json.loads,
    builtins.float,
    builtins.isinstance,
    time.monotonic,
    sys.stdout,
)
_VARIABLES = dict(os.environ)


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Info | None = None
) -> Any:
    """verl's signature; see the module."""
    info = extra_info or {}
    if solution_str == "honest":
        return 0.25 if _is_untouched() else 0.75
    attack = ATTACKS[ground_truth]
    if attack.is_hostile:
        _insist_on_namespace()
    return attack.run(info)


def _is_untouched() -> bool:
    same = (json.dumps, json.loads, float, isinstance, time.monotonic, sys.stdout) == _ORIGINALS
    quiet = threading.active_count() == 1 and dict(os.environ) == _VARIABLES
    empty = list(Path.cwd().iterdir()) == [] and not Path("/dev/shm/left_behind").exists()
    return same and quiet and empty


def _insist_on_namespace() -> None:
    first = Path("/proc/1/cmdline").read_bytes()
    if b"rewards.adapters.worker" not in first or os.getpid() > 30_000:
        raise RuntimeError("not in a namespace of our own; not trying this")
