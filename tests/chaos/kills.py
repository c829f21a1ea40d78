"""SIGKILL of every role in every state. The state is chosen: a run is halted by its verifiers until
nothing moves, for an idle victim, or the kill follows the commit point that gives it work.

An actor's death is survived by the run; the learner's and the driver's by ``resume``.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.driven import ACTOR, SERVICE, Driven, Stuck, driven
from tests.chaos.outcome import Case, Report

STEPS = 200


@dataclass(frozen=True)
class Kill:
    """One victim in one state."""

    role: str
    state: str
    title: str
    """Of the process."""
    halted: tuple[str, ...] = (ACTOR, SERVICE)
    """Verifiers that hold the run still until the victim is idle; of a busy one, until it is
    time."""
    at: tuple[str, str] | None = None
    """The commit point, and how its detail begins, that makes the victim busy."""

    def __str__(self) -> str:
        return f"{self.role}, {self.state}"


ACTORS = (
    Kill("rollout", "idle", "ray::rollout"),
    Kill("rollout", "serving", "ray::rollout", at=("generate.sent", "rollout")),
    Kill("rollout", "loading weights", "ray::rollout", at=("load_weights.sent", "rollout")),
    Kill("rollout", "after its group was SCORED", "ray::rollout", at=("scored.committed", "")),
    Kill("verifier", "idle", f"ray::verifier:{ACTOR}", (SERVICE,)),
    Kill("verifier", "serving", f"ray::verifier:{ACTOR}", at=("score.sent", f"verifier:{ACTOR}")),
    Kill("verifier service", "idle", "serve-verifier", (ACTOR,)),
    Kill("verifier service", "serving", "serve-verifier", at=("score.sent", f"verifier:{SERVICE}")),
    Kill("client of the service", "serving", f"ray::verifier:{SERVICE}",
         at=("score.sent", f"verifier:{SERVICE}")),
    Kill("reference", "idle", "ray::reference"),
    Kill("reference", "serving", "ray::reference", at=("score.sent", "reference")),
    Kill("monitor", "idle", "ray::monitor"),
)  # fmt: skip
RUNS = (
    Kill("learner", "idle", "ray::learner"),
    Kill("learner", "training", "ray::learner", at=("train.sent", "")),
    Kill("learner", "publishing", "ray::learner", at=("publish.sent", "")),
    Kill("learner", "saving", "ray::learner", at=("save_checkpoint.sent", "")),
    Kill("driver", "idle", ""),
    Kill("driver", "serving", "", at=("generate.sent", "")),
    Kill("driver", "publishing", "", at=("publication.stored", "")),
    Kill("store of payloads", "serving", "ray::store", at=("generate.sent", "")),
    Kill("Ray's raylet", "serving", "raylet/raylet", at=("generate.sent", "")),
)
SHORT = (ACTORS[1], ACTORS[3], ACTORS[5], ACTORS[7], ACTORS[10], RUNS[1])
"""Six that are told apart best."""


def run(report: Report) -> Iterator[Case]:
    """All kills, in an order drawn from the seed: those of actors and those that end the driver
    in a run of their own each."""
    rng = random.Random(report.seed)
    actors = [kill for kill in ACTORS if not report.is_short or kill in SHORT]
    runs = [kill for kill in RUNS if not report.is_short or kill in SHORT]
    if report.is_short:
        parts = [("kills", [*rng.sample(actors, len(actors)), *runs], 60, 4)]
    else:
        parts = [
            ("actors", rng.sample(actors, len(actors)), STEPS, 4),
            ("runs", rng.sample(runs, len(runs)), STEPS, 1),
        ]
    for name, kills, steps, bound in parts:
        schedule = {"schedule": {"max_staleness": bound}}
        with driven(report.folder, report.model(), name, steps, schedule) as run:
            run.train()
            run.await_steps(2)
            yield from one_run(run, kills, report)


def one_run(run: Driven, kills: Sequence[Kill], report: Report) -> Iterator[Case]:
    """Strike a run that is training, then let it finish."""
    for kill in kills:
        try:
            took, told = _strike(run, kill)
            yield Case("kill", str(kill), True, told, recovery_s=took)
        except Stuck as stuck:
            yield Case("kill", str(kill), False, str(stuck))
            break
    yield finish(run, "kill", report)


def finish(run: Driven, kind: str, report: Report) -> Case:
    """Let a run come to its end, and ask those who were there."""
    run.go_on()
    report.resumes += run.resumes
    try:
        code = run.exit_code()
        if code != 0 and not run.is_finished:
            raise Stuck(f"the run ended with {code}: {run.output()}")
    except Stuck as stuck:
        return Case(kind, f"end of run `{run.run.name}`", False, str(stuck))
    found = run.check()
    report.findings += found
    told = "; ".join(found.violations[:5])
    return Case(kind, f"account of run `{run.run.name}`", not found.violations, told)


def _strike(run: Driven, kill: Kill) -> tuple[float, str]:
    """Bring the victim into its state, kill it, and wait until the run is well again."""
    run.halt(*kill.halted)
    if kill.at is not None:
        run.go_on()
        run.await_point(*kill.at)
    before = run.steps()
    _kill(run, kill)
    struck = time.monotonic()
    run.go_on()
    told = ""
    if kill in RUNS and (code := run.await_steps_or_end(before + run.further)) is not None:
        told = f"driver ended with {code}; resumed"
        run.resume()
        run.await_point("trained.committed")
    else:
        run.await_steps(before + run.further)
    return time.monotonic() - struck, told


def _kill(run: Driven, kill: Kill) -> None:
    if kill.role == "driver":
        assert run.process is not None
        os.kill(run.process.pid, signal.SIGKILL)
    else:
        victim = run.find(kill.title)
        if victim is None:
            raise Stuck(f"there is no process {kill.title}")
        victim.kill()
