"""The driver, or its learner, dies at every named commit point; the next start must get as far as
the next point. One run is killed and resumed all the way through the list."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator

from safeladder.commit_points import POINTS, VARIABLE
from tests.chaos import checker
from tests.chaos.driven import Driven, Stuck, driven
from tests.chaos.kills import finish
from tests.chaos.outcome import Case, Report

STEPS = 250
LAST = ("loop.finished", "summary.written", "run.finished")
"""Reached at the end of a run alone."""
EARLY = ("services.started", "crew.up", "evaluation.written", "admitted.committed")
"""Tried first, when there is no checkpoint yet."""
SHORT = (
    "admitted.committed", "optimizer.stepped", "checkpoint.manifest_written", "checkpoint.renamed",
    "publication.told",
)  # fmt: skip
AGAIN = frozenset(p for p in POINTS if p.split(".")[0] in ("checkpoint", "batch", "publication"))
"""Where the second time is tried: there is an older one then."""
ONCE_A_RUN = ("evaluation.written",)


def orders(rng: random.Random, is_short: bool) -> list[str]:
    """``NAME:OCCURRENCE`` of all deaths, in the order in which they are tried."""
    if is_short:
        return [f"{point}:1" for point in SHORT]
    middle = [point for point in POINTS if point not in (*LAST, *EARLY[:3])]
    rng.shuffle(middle)
    tried = [f"{point}:{2 if point in AGAIN else rng.randint(1, 3)}" for point in middle]
    tried = [f"{o.split(':')[0]}:1" if o.startswith(("fence", "ray")) else o for o in tried]
    return [*(f"{point}:1" for point in EARLY), *tried]


def run(report: Report) -> Iterator[Case]:
    """Die at all points, then finish, dying on the way out."""
    rng = random.Random(report.seed)
    steps = 20 if report.is_short else STEPS
    with driven(report.folder, report.model(), "deaths", steps) as run:
        for order in orders(rng, report.is_short):
            case = die(run, order)
            yield case
            if not case.survived:
                break
        if not report.is_short and case.survived:
            for point in LAST:
                yield die(run, f"{point}:1")
        if not run.is_finished:
            run.resume()
        yield finish(run, "commit point", report)


def die(run: Driven, order: str) -> Case:
    """Start, and be killed there. That it gets there shows that the death before was survived."""
    point = order.partition(":")[0]
    before, began = len(checker.points(run.witness)), time.time()
    try:
        run.armed(order)
        code = run.exit_code()
    except Stuck as stuck:
        return Case("commit point", order, False, str(stuck))
    seen = checker.points(run.witness)[before:]
    trained = [row["unix_s"] - began for row in seen if row["point"] == "trained.committed"]
    is_driver = POINTS[point].startswith("driver")
    is_death = code == -signal.SIGKILL if is_driver else code not in (0, 2, 3, 6)
    has_come = any(row["point"] == point for row in seen)
    told = "" if is_death and has_come else f"{VARIABLE}={order}: exit {code}: {run.output()}"
    return Case("commit point", order, not told, told, trained[0] if trained else None)
