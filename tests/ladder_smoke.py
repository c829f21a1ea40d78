"""``make ladder-smoke``: a tiny model climbs every kind of rung in a few minutes.

``python -m tests.ladder_smoke`` climbs text, then images: demonstrations, joint RL with a probe and
a tripwire, efficient RL (CANON), deliberative search; a tiny vision-language model climbs two rungs
of RL on drawn pictures. The driver of the text ladder is killed between two rungs and resumed.
``--only text`` or ``vision`` climbs one of them. Exit code 1 if a rung is missing, the lineage does
not hold or the books of a run do not agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.ladder_directory import LadderDirectory
from cluster.ledger import Ledger
from demo.search_data import main as write_search_rows
from demo.vision import draw_rows
from tests.runs.conftest import REPOSITORY, run_environment
from tests.tiny_model import save_tiny_model
from tests.tiny_vision_model import save_tiny_vision_model

RUNG_S = 240.0
Tree = dict[str, Any]

BASE: Tree = {
    "rollout": {
        "engine": "transformers", "group_size": 4, "max_prompt_tokens": 160, "max_new_tokens": 8,
    },
    "reward": {"filter_zero_variance": False},
    "learner": {"lr": 1e-3, "micro_batch_tokens": 512, "zero_stage": 0},
    "schedule": {"groups_per_step": 2, "max_staleness": 1},
    "checkpoint": {"every_steps": 2, "keep": 4},
    "evaluation": {"max_new_tokens": 8},
    "monitor": {"wandb": "off"},
    "placement": {"object_store_gib": 0.2},
}  # fmt: skip


def text_ladder(folder: Path) -> Tree:
    """All four stages of the recipe."""
    write_search_rows(folder / "search")
    rows = [
        {"id": f"{route}{i}", "prompt": f"What is {i} + 1?", "route": route,
         "reference": str(i + 1), "meta": {}}
        for route in ("normal", "knowledge_rule") for i in range(4)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    shown = [{"prompt": f"What is {i} + 1?", "response": str(i + 1)} for i in range(8)]
    (folder / "sft.jsonl").write_text("\n".join(map(json.dumps, shown)) + "\n")
    rules = {
        "normal": "rewards.helpfulness:Normal", "rule": "rewards.exact:ExactAnswer",
        "stop": "rewards.format:StopWithinLimit", "search_format": "rewards.search:SearchFormat",
        "search_accuracy": "rewards.search:SearchAccuracy",
        "reliability": "rewards.search:SearchReliability",
    }  # fmt: skip
    search = {name: {"options": {"match": "text"}} for name in ("search_accuracy", "reliability")}
    probe = {"data": [str(folder / "rows.jsonl")], "principle": "stop", "limit": 4}
    environment = {
        "kind": "search", "options": {"corpus": "demo/library", "results": 1, "read_tokens": 40},
        "max_turns": 2, "max_turn_tokens": 8, "reply_tokens": 500,
    }  # fmt: skip
    return BASE | {
        "model": {"path": str(save_tiny_model(folder / "model", context=2048)), "dtype": "float32"},
        "data": {"train": [str(folder / "rows.jsonl")], "held_out": [str(folder / "rows.jsonl")]},
        "principles": {
            name: {"verifier": path, **search.get(name, {})} for name, path in rules.items()
        },
        "routes": {
            "normal": {"normal": 1.0, "stop": 0.5}, "knowledge_rule": {"rule": 1.0, "stop": 0.5},
        },
        "ladder": [
            {"name": "cot-sft", "stage": "sft",
             "sft": {"data": [str(folder / "sft.jsonl")], "epochs": 1, "batch_size": 4}},
            {"name": "m3-rl", "exit": {"steps": 2}, "reference": {"kl_coefficient": 0.001},
             "learner": {"objective": {"profile": "cpgd"}},
             "probes": {"every_steps": 1, "sets": {"stops": probe}},
             "tripwires": {"falls": {"probe": "stops", "max_drop": 1.0, "action": "pause"}}},
            {"name": "efficient", "exit": {"steps": 2},
             "learner": {"objective": {"profile": "cale"}}},
            {"name": "search", "exit": {"steps": 1},
             "data": {"train": [str(folder / "search/train.jsonl")], "held_out": []},
             "routes": {
                 "search": {"search_format": 0.1, "search_accuracy": 0.9, "reliability": 1.0}},
             "reward": {"gates": ["search_format"], "gates_earn": True},
             "rollout": {"environment": environment, "max_new_tokens": 16},
             "learner": {"micro_batch_tokens": 1024}},
        ],
    }  # fmt: skip


def vision_ladder(folder: Path) -> Tree:
    """Two rungs about drawn pictures."""
    rows = draw_rows(folder / "pictures", 8, seed=1)
    return BASE | {
        "model": {"path": str(save_tiny_vision_model(folder / "model")), "dtype": "float32"},
        "data": {"train": [str(rows)], "held_out": [str(rows)]},
        "rollout": {**BASE["rollout"], "max_prompt_tokens": 256},
        "principles": {"rule": {"verifier": "rewards.exact:ExactAnswer"}},
        "routes": {"knowledge_rule": {"rule": 1.0}},
        "ladder": [
            {"name": "kg", "exit": {"steps": 1}},
            {"name": "joint", "exit": {"steps": 1}, "learner": {"objective": {"profile": "cale"}}},
        ],
    }  # fmt: skip


FORMS: Mapping[str, Callable[[Path], Tree]] = {"text": text_ladder, "vision": vision_ladder}


def climb(form: str, folder: Path) -> list[str]:
    """Climb one ladder; what is wrong with it, in sentences."""
    tree = FORMS[form](folder) | {"run": {"name": form, "root": str(folder / "runs")}}
    config = folder / f"{form}.yaml"
    config.write_text(json.dumps(tree))
    ladder = folder / "runs" / form
    if form == "text":
        killed_at = kill_once(config, ladder)
        say(f"{form}: the driver was killed after rung {killed_at}; going on")
        done = command("resume", str(ladder))
    else:
        done = command("train", str(config))
    if done.returncode:
        return [f"{form}: exit code {done.returncode}: {done.stdout[-1500:]}{done.stderr[-1500:]}"]
    shown = command("ladder", str(ladder))
    say(shown.stdout)
    return [f"{form}: {problem}" for problem in problems_of(LadderDirectory(ladder))]


def kill_once(config: Path, ladder: Path) -> str:
    """Start the climb and kill its driver as soon as a rung has ended; the rung's name."""
    log = (config.parent / "driver.log").open("wb")
    driver = subprocess.Popen(
        [sys.executable, "-m", "cluster", "train", str(config)],
        cwd=REPOSITORY, env=run_environment(), stdout=log, stderr=log,
    )  # fmt: skip
    directory, deadline = LadderDirectory(ladder), time.monotonic() + RUNG_S
    try:
        while driver.poll() is None and time.monotonic() < deadline:
            if directory.lineage.exists():
                ended = [one.run for one in directory.read_lineage().rungs if one.end is not None]
                if ended:
                    return ended[-1]
            time.sleep(0.05)
        log.flush()
        return (
            f"none, since it ended by itself: {(config.parent / 'driver.log').read_text()[-900:]}"
        )
    finally:
        driver.kill()
        driver.wait()
        log.close()


def problems_of(directory: LadderDirectory) -> list[str]:
    """Of a ladder that should have been climbed whole."""
    ladder, lineage = directory.ladder(), directory.read_lineage()
    found = []
    ends = [record.end for record in lineage.rungs]
    if len(ends) != len(ladder.rungs) or None in ends:
        found.append(f"{len(ends)} of {len(ladder.rungs)} rungs have ended")
    for before, after in zip(lineage.rungs, lineage.rungs[1:], strict=False):
        if after.start != before.end:
            found.append(f"{after.run} did not start from what {before.run} ended with")
    for rung, record in zip(ladder.rungs, lineage.rungs, strict=False):
        if rung.config.stage == "rl":
            with Ledger.open(directory.run(record.run).ledger, record.run) as ledger:
                found += [f"{record.run}: {problem}" for problem in ledger.audit()]
            if record.steps != rung.config.run.steps:
                found.append(f"{record.run} took {record.steps} steps")
    return found


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """``safeladder`` with these words, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cluster", *words],
        cwd=REPOSITORY, env=run_environment() | {"COLUMNS": "160"},
        capture_output=True, text=True, timeout=5 * RUNG_S, check=False,
    )  # fmt: skip


def say(text: str) -> None:
    """To the terminal, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Climb, print what came of it, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.ladder_smoke")
    parser.add_argument("--only", choices=FORMS)
    only = parser.parse_args(arguments).only
    began, found = time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory(prefix="sl-ladder-") as folder:
        for form in [only] if only else FORMS:
            (place := Path(folder) / form).mkdir()
            found += climb(form, place)
    for problem in found:
        say(f"! {problem}")
    say(f"ladder-smoke: {'not ' if found else ''}climbed in {time.monotonic() - began:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
