"""The one writer of metrics: ``metrics.jsonl`` always, Weights & Biases where it works.

The only door to W&B. W&B lives in a thread of its own behind a bounded queue, so that it can be
slow, hang or fail without holding up the run: it then falls back (online → offline → off), says so
once, and the files go on. Every row carries its own axes (``train/step``, ``rollout/version``,
``eval/step``, ``time/unix_s``); W&B's implicit step is never relied on, since it restarts at 0
after an offline resume.

What the numbers mean is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from cluster.history import AXES
from cluster.run_directory import RunDirectory
from safeladder.config import Config
from safeladder.config_loading import config_hash, shareable

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
Mode = Literal["online", "offline", "off"]

QUEUE_ROWS = 2_000
INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 45.0
ALERT_INTERVAL_S = 300
"""W&B repeats an alert of the same kind no sooner."""


class Monitor:
    """The role of the monitor actor; also usable in the driver's own process."""

    def __init__(self, run_dir: Path, config: Config, verifiers: Mapping[str, str]) -> None:
        """``verifiers``: principle → name and version of who judges it."""
        self._run = RunDirectory(run_dir)
        self._config = config
        self._notices: list[str] = []
        self._files: dict[Path, IO[str]] = {}
        self._wandb: _Wandb | None = None
        self._verifiers = dict(verifiers)

    async def start(self) -> str:
        """Open W&B in the background; returns the mode that will be tried."""
        mode = choose_mode(self._config.monitor.wandb, os.environ)
        if mode != "off":
            self._wandb = _Wandb(mode, self._run, self._config, self._verifiers, self._notice)
        return mode

    async def record(self, kind: str, values: Mapping[str, float]) -> None:
        """One row of numbers of a kind in ``AXES``. Raises ``ValueError`` without its axis."""
        if AXES.get(kind) not in values:
            raise ValueError(f"a {kind!r} row needs its axis ({AXES.get(kind, 'unknown kind')})")
        row = {"time/unix_s": time.time(), **values}
        self._append(self._run.metrics, [{"kind": kind, **row}])
        if self._wandb is not None:
            self._wandb.log(AXES[kind], row)

    async def verdicts(self, rows: Sequence[Row]) -> None:
        """Append verdicts to ``verdicts.jsonl``."""
        self._append(self._run.verdicts, rows)

    async def samples(self, step: int, rows: Sequence[Row]) -> None:
        """Sample completions with their verdicts: ``samples.jsonl`` and a table in W&B.

        Each row: sample_id, version, prompt, response, reward, verdicts {principle: what it said},
        disagreement {principle of a quorum: how far its members are apart}.
        Texts are left out if ``monitor.redact_samples`` is set.
        """
        if self._config.monitor.redact_samples:
            rows = [_redacted(row) for row in rows]
        rows = [{"train/step": step, **row} for row in rows]
        self._append(self._run.samples, rows)
        self._to_wandb(lambda run: _log_table(run, step, rows, sorted(self._config.principles)))

    async def alert(self, kind: str, text: str) -> None:
        """Something a person should see: into ``metrics.jsonl`` and W&B's alerts."""
        row = {"kind": "alert", "time/unix_s": time.time(), "alert": kind, "text": text}
        self._append(self._run.metrics, [row])
        self._to_wandb(
            lambda run: run.alert(
                title=kind, text=text, level="WARN", wait_duration=ALERT_INTERVAL_S
            )
        )

    async def notices(self) -> list[str]:
        """Sentences that came up since the last call, each given once (W&B fell back)."""
        said, self._notices[:] = list(self._notices), []
        return said

    async def finish(self, summary: Row) -> None:
        """Write the summary to W&B and end it, within a deadline; close all files."""
        if self._wandb is not None:
            values = {**summary, "verifiers": self._verifiers}
            self._to_wandb(lambda run: run.summary.update(values))
            await asyncio.to_thread(self._wandb.finish, FINISH_TIMEOUT_S)
            self._wandb = None
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, path: Path, rows: Iterable[Row]) -> None:
        if path not in self._files:
            is_cut = _is_cut(path)
            self._files[path] = path.open("a", encoding="utf-8")
            if is_cut:  # a killed writer left half a line: keep the next one apart from it
                self._files[path].write("\n")
        text = "".join(json.dumps(_finite(row), ensure_ascii=False) + "\n" for row in rows)
        self._files[path].write(text)
        self._files[path].flush()

    def _to_wandb(self, action: Callable[[Any], Any]) -> None:
        if self._wandb is not None:
            self._wandb.put(action)

    def _notice(self, text: str) -> None:
        log.warning("%s", text)
        self._notices.append(text)


def choose_mode(
    wanted: Literal["auto", "online", "offline", "off"], environment: Mapping[str, str]
) -> Mode:
    """What ``auto`` means: WANDB_MODE if it is set, else online with a key, else offline."""
    if wanted != "auto":
        return wanted
    said = environment.get("WANDB_MODE", "")
    if said in ("online", "offline"):
        return "online" if said == "online" else "offline"
    if said == "disabled":
        return "off"
    return "online" if environment.get("WANDB_API_KEY") else "offline"


class _Wandb:
    """W&B in its own thread. Nothing that happens there reaches the caller but a notice."""

    def __init__(
        self,
        mode: Mode,
        run: RunDirectory,
        config: Config,
        verifiers: Mapping[str, str],
        notice: Callable[[str], None],
    ) -> None:
        self._mode = mode
        self._directory = run
        self._config = config
        self._verifiers = verifiers
        self._notice = notice
        self._is_full = False
        self._families: set[str] = set()
        self._queue: queue.Queue[Callable[[Any], Any] | None] = queue.Queue(QUEUE_ROWS)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def put(self, action: Callable[[Any], Any]) -> None:
        """Queue one call on the W&B run; dropped, with one notice, while W&B is far behind."""
        try:
            self._queue.put_nowait(action)
        except queue.Full:
            if not self._is_full:
                self._notice("W&B is too slow and misses rows; metrics.jsonl has all of them")
            self._is_full = True

    def log(self, axis: str, row: Mapping[str, float]) -> None:
        """Queue a row of numbers; the axis of each family of names is declared at first use."""

        def action(run: Any) -> None:
            for family in {name.partition("/")[0] for name in row} - self._families:
                run.define_metric(f"{family}/*", step_metric=axis)
                self._families.add(family)
            run.log(dict(row))

        self.put(action)

    def finish(self, timeout_s: float) -> None:
        """Let the thread work off its queue and end W&B; give up after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._notice("W&B did not finish in time and is left behind; metrics.jsonl is complete")

    def _work(self) -> None:
        run = self._open()
        while (action := self._queue.get()) is not None:
            run = self._attempt(run, action)
        self._attempt(run, lambda opened: opened.finish())

    def _attempt(self, run: Any, action: Callable[[Any], Any]) -> Any:
        """Run one call; None once W&B has failed, and from then on."""
        if run is None:
            return None
        try:
            action(run)
        except Exception as error:  # noqa: BLE001 - whatever W&B does, the run goes on without it
            self._notice(f"W&B stopped ({_first_line(error)}); metrics.jsonl goes on")
            return None
        return run

    def _open(self) -> Any:
        """A W&B run in the wanted mode, else offline, else None."""
        modes: tuple[Literal["online", "offline"], ...] = ("online", "offline")
        for mode in modes if self._mode == "online" else modes[1:]:
            try:
                return self._init(mode)
            except Exception as error:  # noqa: BLE001 - whatever W&B does, the run goes on without it
                way_out = "going on offline" if mode == "online" else "going on without it"
                self._notice(f"W&B {mode} does not start ({_first_line(error)}); {way_out}")
        return None

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        folder = self._directory.wandb
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            os.environ.setdefault(name, str(folder.absolute() / "cache"))
        # A failed online start keeps the run's identity in use for as long as W&B's service lives.
        suffix = "-offline" if mode != self._mode else ""
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            init_timeout=INIT_TIMEOUT_S,
            login_timeout=INIT_TIMEOUT_S,
        )
        run = wandb.init(
            mode=mode,
            dir=str(self._directory.path),
            project=self._config.monitor.project,
            name=self._config.run.name,
            group=self._config.run.name,
            job_type="train",
            id=_run_id(folder / "run-id", self._config.run.name) + suffix,
            resume="allow",
            config=_wandb_config(self._config, self._verifiers),
            settings=settings,
        )
        for axis in AXES.values():
            run.define_metric(axis)
        return run


def _log_table(run: Any, step: int, rows: Sequence[Row], principles: Sequence[str]) -> None:
    import wandb

    texts = ("sample_id", "version", "prompt", "response", "reward")
    quorums = sorted({name for row in rows for name in row.get("disagreement", {})})
    apart = [f"disagreement/{name}" for name in quorums]
    table = wandb.Table(columns=["train/step", *texts, *principles, *apart])
    for row in rows:
        verdicts = row.get("verdicts", {})
        said = [None if verdicts.get(p) is None else str(verdicts[p]) for p in principles]
        said += [row.get("disagreement", {}).get(p) for p in quorums]
        table.add_data(step, *(row.get(name) for name in texts), *said)
    run.log({"train/step": step, "train/samples": table})


def _is_cut(path: Path) -> bool:
    """Whether a file ends in the middle of a line."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _wandb_config(config: Config, verifiers: Mapping[str, str]) -> dict[str, Any]:
    """The resolved config with verifier names and versions; W&B stores it in clear text."""
    return {**shareable(config), "verifiers": dict(verifiers), "config_sha256": config_hash(config)}


def _run_id(path: Path, name: str) -> str:
    """Identity of the run in W&B, the same after a resume."""
    if not path.is_file():
        path.write_text(f"{name}-{secrets.token_hex(4)}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _redacted(row: Row) -> Row:
    hidden = {name: f"[{len(str(row[name]))} characters]" for name in ("prompt", "response")}
    return {**row, **{name: text for name, text in hidden.items() if name in row}}


def _finite(row: Row) -> dict[str, Any]:
    """JSON knows no NaN: numbers that are not finite are written as null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
