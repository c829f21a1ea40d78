"""``make demo``: the main job on two cores, from a model in a package to a table before and after.

Converts the model once, frees the name of the last demo run, trains by ``configs/demo.yaml``
(further config files and ``key=value`` overrides may follow on the command line), and says whether
the run kept what the README promises of it. With ``--strict`` a promise that is not kept is exit
code 1.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.placement import prepare_ray
from cluster.run_directory import RunDirectory
from demo.convert_smollm2 import convert
from evals.held_out import demo_bar
from safeladder.config_loading import load_config
from safeladder.errors import SafeladderError

CONFIG = Path("configs/demo.yaml")


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    words = [argument for argument in arguments if argument != "--strict"]
    overlays = [Path(word) for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    config = load_config([CONFIG, *overlays], overrides)
    if not config.model.path.exists():
        print(
            "converting SmolLM2-135M-Instruct from its package (once, about a minute)", flush=True
        )
    convert(config.model.path)
    directory = RunDirectory(config.run.directory)
    if directory.config_file.is_file():
        print(f"removing the last demo run, {directory.path}", flush=True)
        shutil.rmtree(directory.path)
    prepare_ray(config)
    from cluster.driver import train

    train(config)
    failures = demo_bar(json.loads(directory.summary.read_text(encoding="utf-8")))
    for failure in failures:
        print(f"not kept: {failure}", flush=True)
    if not failures:
        print("kept: safe rate up by 20 points or more, helpful rate not down by more than 3")
    return 1 if failures and "--strict" in arguments else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SafeladderError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
