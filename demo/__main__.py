"""``make demo``: the main job on two cores, from a model in a package to a table before and after.

Converts the model once, checks everything, frees the demo's own name of its last run, trains by
``configs/demo.yaml`` (further config files and ``key=value`` overrides may follow on the command
line), and says whether the run kept what the README promises of it. With ``--strict`` a promise
that is not kept is exit code 1.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.placement import prepare_ray
from cluster.run_directory import RunDirectory, recorded
from demo.convert_smollm2 import convert
from evals.held_out import demo_bar
from safeladder.config_loading import files_and_overrides, load_config
from safeladder.errors import EnvironmentUnfitError, SafeladderError
from safeladder.paths import PathError, kind_of

CONFIG = Path("configs/demo.yaml")


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    words = [argument for argument in arguments if argument != "--strict"]
    overlays, overrides = files_and_overrides(words)
    config = load_config([CONFIG, *overlays], overrides)
    directory = RunDirectory(config.run.directory)
    is_own = config.run.name == load_config([CONFIG]).run.name
    if not is_own:
        RunDirectory.require_absent(config)
    _convert_once(config.model.path)
    prepare_ray(config)
    from cluster.checks import preflight
    from cluster.driver import train

    preflight(config)
    if is_own and directory.holds_a_run:
        print(f"removing the last demo run, {directory.path}", flush=True)
        shutil.rmtree(directory.path)
    with recorded(directory.path, take_over=False):
        train(config)
    failures = demo_bar(json.loads(directory.summary.read_text(encoding="utf-8")))
    for failure in failures:
        print(f"not kept: {failure}", flush=True)
    if not failures:
        print("kept: safe rate up by 20 points or more, helpful rate not down by more than 3")
    return 1 if failures and "--strict" in arguments else 0


def _convert_once(path: Path) -> None:
    try:
        is_there = kind_of(path) is not None
    except PathError as error:
        raise EnvironmentUnfitError(f"model.path {path}: {error}; choose another place") from None
    if not is_there:
        print(
            "converting SmolLM2-135M-Instruct from its package (once, about a minute)", flush=True
        )
    convert(path)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SafeladderError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
