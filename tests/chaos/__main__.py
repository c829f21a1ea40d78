"""Every fault that is known, against real runs: ``python -m tests.chaos``, or ``make chaos``.

Prints one line for each fault and one JSON object at the end; the exit status is 1 if a fault was
not survived or the accounting promise was broken. ``--only kills deaths`` tries some classes,
``--short`` the few that tell most. What judges is ``tests.chaos.checker``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from tests.chaos import deaths, kills, raylets, surroundings, vllm, zombies
from tests.chaos.driven import Stuck
from tests.chaos.outcome import Case, Report

CLASSES: Mapping[str, Callable[[Report], Iterator[Case]]] = {
    "kills": kills.run,
    "deaths": deaths.run,
    "zombies": zombies.run,
    "outage": surroundings.outage,
    "disk": surroundings.disk,
    "raylets": raylets.run,
    "vllm": vllm.run,
}
SHORT = ("kills", "deaths")


def main(arguments: Sequence[str]) -> int:
    """Try the classes and print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--only", nargs="+", choices=CLASSES, metavar="CLASS")
    parser.add_argument("--short", action="store_true", help="few minutes")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    asked = parser.parse_args(arguments)
    report = Report(asked.seed, asked.short)
    sys.stdout.write(f"seed {asked.seed}, everything below {report.folder}\n")
    began = time.monotonic()
    for name in asked.only or (SHORT if asked.short else CLASSES):
        for case in _cases(name, report):
            report.cases.append(case)
            _tell(case, time.monotonic() - began)
    _tell_classes(report.cases)
    sys.stdout.write(
        json.dumps(report.figures() | {"wall_s": round(time.monotonic() - began)}) + "\n"
    )
    if report.holds:
        shutil.rmtree(report.folder)
    return int(not report.holds)


def _cases(name: str, report: Report) -> Iterator[Case]:
    try:
        yield from CLASSES[name](report)
    except Stuck as stuck:  # before its first fault
        yield Case(name, "a run to be hurt", False, str(stuck))


def _tell(case: Case, at_s: float) -> None:
    outcome = "survived" if case.survived else "NOT SURVIVED"
    took = "" if case.recovery_s is None else f"{case.recovery_s:6.1f} s"
    line = f"[{at_s:6.0f} s] {case.kind:14} {case.name:40} {outcome:12} {took:9} {case.told}"
    sys.stdout.write(f"{line.rstrip()}\n")
    sys.stdout.flush()


def _tell_classes(cases: Sequence[Case]) -> None:
    for kind in dict.fromkeys(case.kind for case in cases):
        mine = [case for case in cases if case.kind == kind]
        held = sum(case.survived for case in mine)
        sys.stdout.write(f"{kind:14} {len(mine):4} tried {held:4} survived\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
