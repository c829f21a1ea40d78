"""A tiny run that is hurt from outside, and those who watch it.

Owns the processes of one run (all carry a mark, and only they are ever ended), its config, the
moods of its verifiers and the folder of the witnesses. What they saw is judged by ``checker``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from safeladder.commit_points import LOG_VARIABLE, VARIABLE
from tests.chaos import checker
from tests.runs.conftest import REPOSITORY, Tree, run_environment, write_config
from tests.runs.leftovers import MARK, end, marked

DEADLINE_S = 240.0
QUIET_S = 1.0
LOOK_EVERY_S = 0.005
GROUPS_PER_STEP = 4
ACTOR, SERVICE = "near", "far"
"""The two principles: one is judged in an actor, one in a service of the run."""


class Stuck(Exception):
    """What was waited for did not come in time, or cannot come any more."""


class Driven:
    """One run and everything around it."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        name: str,
        steps: int,
        overrides: Tree,
        verdict_s: float = 60.0,
    ) -> None:
        """``overrides`` of the config, key by key of a section; a verifier is waited for
        ``verdict_s``."""
        self.folder = folder
        self.run = Path(overrides.get("run", {}).get("root", folder / "runs")) / name
        self.witness = folder / f"{name}.witness"
        (self.witness / "batches").mkdir(parents=True)
        self.bound = int(overrides.get("schedule", {}).get("max_staleness", 1))
        self.config = self._write(model, name, steps, verdict_s)
        self.amend(overrides)
        self.resumes = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._mark = uuid.uuid4().hex
        self._seen = 0
        self._is_over = threading.Event()
        self._linker = threading.Thread(target=self._link_batches, daemon=True)
        self._linker.start()
        for principle in (ACTOR, SERVICE):
            self.mood(principle, "ok")

    # ---- the driver ---------------------------------------------------------------------------

    def train(self, **environment: str) -> None:
        """Start the run."""
        self._start("train", str(self.config), environment)

    def resume(self, **environment: str) -> None:
        """Go on with it, whatever is left of the driver before."""
        self.resumes += 1
        self._start("resume", str(self.run), environment)

    def armed(self, order: str) -> None:
        """Train or resume, to die or stop at a commit point."""
        if (self.run / "ledger.sqlite").exists():
            self.resume(**{VARIABLE: order})
        else:
            self.train(**{VARIABLE: order})

    def exit_code(self, timeout_s: float = DEADLINE_S) -> int:
        """Wait for the driver's end."""
        assert self.process is not None
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise Stuck(f"the driver did not end within {timeout_s:.0f} s") from None

    def environment(self) -> dict[str, str]:
        """What every process of the run is started with."""
        points = str(self.witness / "points")
        return run_environment() | {MARK: self._mark, LOG_VARIABLE: points}

    def amend(self, overrides: Tree) -> None:
        """Replace keys of the config before the run starts."""
        tree = json.loads(self.config.read_text())
        for section, values in overrides.items():
            tree[section] = {**tree.get(section, {}), **values}
        self.config.write_text(json.dumps(tree, indent=1))

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def is_finished(self) -> bool:
        """Whether the run says that it has done all its steps."""
        status = self.run / "status.json"
        return status.exists() and json.loads(status.read_text())["state"] == "finished"

    def output(self) -> str:
        """The last words of all drivers of the run."""
        return (self.folder / f"{self.run.name}.log").read_text(errors="replace")[-1500:]

    def close(self) -> None:
        """End whatever is left of the run."""
        self._is_over.set()
        if self.process is not None and self.is_running:
            self.process.kill()
        for process in marked(self._mark):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        end(self._mark)
        self._linker.join()

    # ---- what others see of it ----------------------------------------------------------------

    def mood(self, principle: str, word: str) -> None:
        """Change how a verifier behaves."""
        path = self.witness / f"{principle}.mood"
        partial = path.with_suffix(".partial")
        partial.write_text(word)
        partial.replace(path)

    def halt(self, *principles: str) -> None:
        """Let verifiers wait, and wait until nothing moves any more."""
        for principle in principles or (ACTOR, SERVICE):
            self.mood(principle, "wait")
        known, since = -1, time.monotonic()
        deadline = since + DEADLINE_S
        while time.monotonic() - since < QUIET_S:
            if (size := self._log_size()) != known:
                known, since = size, time.monotonic()
            self._require(time.monotonic() < deadline, "a run that halts")
            time.sleep(0.05)

    def go_on(self) -> None:
        """End ``halt``."""
        for principle in (ACTOR, SERVICE):
            self.mood(principle, "ok")

    def steps(self) -> int:
        """The last step that is TRAINED in the ledger."""
        sql = "SELECT coalesce(max(step), 0) FROM groups WHERE state = 'trained'"
        rows = checker.query(self.run, sql)
        return int(rows[0][0]) if rows else 0

    @property
    def further(self) -> int:
        """Steps that show that a run goes on: more than it has groups for at any time."""
        return self.bound + 2

    def await_steps(self, count: int) -> None:
        """Wait for so many steps, or for the end of the run."""
        self.await_that(lambda: self.steps() >= count, f"step {count}")

    def await_steps_or_end(self, count: int) -> int | None:
        """Wait for so many steps; the exit code if the driver ends first."""
        deadline = time.monotonic() + DEADLINE_S
        while self.is_running and self.steps() < count:
            if time.monotonic() > deadline:
                raise Stuck(f"waited {DEADLINE_S:.0f} s for step {count}, or the driver's end")
            time.sleep(0.05)
        return None if self.is_running else self.exit_code()

    def await_that(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            self._require(time.monotonic() < deadline, what)
            time.sleep(0.05)

    def await_point(self, point: str, detail: str = "") -> str:
        """Wait until somebody comes by a commit point from now on; returns its detail."""
        self._seen = self._log_size()
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for row in self._new_points():
                if row["point"] == point and str(row["detail"]).startswith(detail):
                    return str(row["detail"])
            self._require(time.monotonic() < deadline, f"the point {point} {detail}")
            time.sleep(LOOK_EVERY_S)

    def processes(self) -> list[psutil.Process]:
        """All living processes of the run."""
        return marked(self._mark)

    def find(self, title: str) -> psutil.Process | None:
        """A living process of the run whose command line starts with, or for a program contains,
        ``title``."""
        for process in marked(self._mark):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if line.startswith(title) or (not title.startswith("ray::") and title in line):
                    return process
        return None

    def check(self) -> checker.Findings:
        """The account of the finished run."""
        return checker.check_finished(
            self.run, self.witness, groups_per_step=GROUPS_PER_STEP, bound=self.bound
        )

    # ---- inside -------------------------------------------------------------------------------

    def _start(self, verb: str, argument: str, environment: Mapping[str, str]) -> None:
        with (self.folder / f"{self.run.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cluster", verb, argument],
                cwd=REPOSITORY,
                env=self.environment() | dict(environment),
                stdout=log,
                stderr=log,
            )

    def _require(self, is_in_time: bool, what: str) -> None:
        if not is_in_time:
            raise Stuck(f"waited {DEADLINE_S:.0f} s for {what}")
        if not self.is_running and what != "the end":
            assert self.process is not None
            code = self.process.returncode
            raise Stuck(f"the driver ended with {code} before {what}: {self.output()[-600:]}")

    def _log_size(self) -> int:
        path = self.witness / "points"
        return path.stat().st_size if path.exists() else 0

    def _new_points(self) -> Iterator[dict[str, Any]]:
        path = self.witness / "points"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._seen)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._seen += len(line)
                yield json.loads(line)

    def _link_batches(self) -> None:
        """Keep every batch that ever stands in the run's folder, in order of appearance."""
        known: set[int] = set()
        while not self._is_over.wait(LOOK_EVERY_S * 4):
            for path in sorted((self.run / "batches").glob("step-*.safetensors")):
                with contextlib.suppress(OSError):
                    inode = path.stat().st_ino
                    if inode not in known:
                        known.add(inode)
                        os.link(path, self.witness / "batches" / f"{len(known):06d}-{path.name}")

    def _write(self, model: Path, name: str, steps: int, verdict_s: float) -> Path:
        options = {"options": {"folder": str(self.witness)}, "timeout_s": verdict_s}
        judge = {"verifier": "tests.chaos.witnessed:Witnessed", **options}
        base: Tree = {
            "reference": {"kl_coefficient": 0.001},
            "reward": {"filter_zero_variance": True},
            "rollout": {"max_new_tokens": 16},
            "checkpoint": {"every_steps": 2, "keep": 2},
        }
        path = write_config(self.folder, model, name, steps, base)
        tree = json.loads(path.read_text())
        tree["principles"] = {ACTOR: judge, SERVICE: {**judge, "service": {"spawn": True}}}
        tree["routes"] = {"normal": {ACTOR: 1.0}, "knowledge_rule": {SERVICE: 1.0}}
        held_out = self.folder / "held_out.jsonl"
        rows = Path(tree["data"]["train"][0]).read_text().splitlines()
        held_out.write_text("\n".join(rows[-2:]) + "\n")
        tree["data"]["held_out"] = [str(held_out)]
        path.write_text(json.dumps(tree, indent=1))
        return path


@contextmanager
def driven(
    folder: Path,
    model: Path,
    name: str,
    steps: int,
    overrides: Tree | None = None,
    verdict_s: float = 60.0,
) -> Iterator[Driven]:
    """A run that is ended, with all it started, when the case is over."""
    run = Driven(folder, model, name, steps, overrides or {}, verdict_s)
    try:
        yield run
    finally:
        run.close()
