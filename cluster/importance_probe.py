"""``safeladder probe importance``: which constraints a model looks at while it answers.

The same rows at a few levels of CDDI in single round; for each the model's own greedy answer and
the gradient of every token of it. Runs on transformers in this process, in float32. Difficulty
comes from a file, for example the ``difficulty.json`` of an order probe of the same model.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cluster.importance_report import print_importance_report, write_importance_report
from cluster.placement import compute_on
from cluster.probe_model import ProbeModel, as_json
from cluster.probe_plan import choose_rows, plan_trials, read_difficulty, read_probe_rows
from cluster.run_directory import host_facts
from evals.importance_spans import Density
from evals.importance_statistics import summarize_importance
from evals.order_judging import judge_trial
from rewards.constraints.port import Reading
from safeladder.errors import EnvironmentUnfitError
from safeladder.whole_file import write_whole

LEVELS = (-1.0, -0.05, 1.0)
"""Those of PBIF's study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceProbe:
    """The options of a study."""

    model: ProbeModel
    prompts: Path
    difficulty: Path
    out: Path
    num_prompts: int = 6
    levels: tuple[float, ...] = LEVELS
    density: Density
    seed: int = 0
    reading: Reading = "reference"

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, beside the trials, as JSON values."""
        return self.model.settings() | {
            "prompts": self.prompts.name,
            "prompts_sha256": hashlib.sha256(self.prompts.read_bytes()).hexdigest()[:16],
            "seed": self.seed,
            "reading": self.reading,
        }


def importance_probe_command(options: ImportanceProbe) -> int:
    """Study, write ``report.json``, ``report.html`` and ``importance/*.safetensors`` into
    ``options.out``, print the table."""
    compute_on(options.model.threads)
    rows, _ = choose_rows(read_probe_rows(options.prompts), options.num_prompts, options.seed)
    difficulty = read_difficulty(options.difficulty, rows)
    trials = plan_trials(
        rows, difficulty, rounds=("single",), levels=options.levels, seed=options.seed
    )
    model, renderer = _load(options.model)
    from evals.importance_study import study

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("importance", total=len(trials))
        records = study(
            model,
            renderer,
            trials,
            partial(judge_trial, reading=options.reading),
            options.out / "importance",
            options.settings(),
            max_new_tokens=options.model.max_new_tokens,
            density=options.density,
            on_trial=lambda _: bar.advance(task),
        )
    report: dict[str, Any] = {
        "kind": "importance study",
        "settings": options.settings() | {"num_prompts": options.num_prompts},
        "template_adds": options.model.template_adds(),
        "figures": summarize_importance(records, seed=options.seed),
        "trials": [_short(record) for record in records],
        "packages": host_facts()["packages"],
    }
    write_whole(options.out / "report.json", as_json(report))
    page = write_importance_report(options.out, report, records)
    print_importance_report(report, sys.stdout)
    Console(stderr=True, highlight=False, markup=False).print(str(page))
    return 0


def _load(options: ProbeModel) -> tuple[Any, Any]:
    """(frozen float32 model, renderer). Raises ``EnvironmentUnfitError``."""
    import torch
    from transformers import AutoModelForCausalLM

    from actors.local_model import LOCAL, require_folder
    from actors.rendering import PromptRenderer

    require_folder(options.path)
    torch.set_num_threads(options.threads)
    try:
        model = AutoModelForCausalLM.from_pretrained(options.path, dtype=torch.float32, **LOCAL)
    except (OSError, ValueError) as error:
        raise EnvironmentUnfitError(f"model {options.path} cannot be loaded: {error}") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frozen = model.eval().requires_grad_(False).to(device)
    return frozen, PromptRenderer.from_config(options.model)


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what is in its safetensors file."""
    kept = ("trial", "prompt", "cddi", "ranks", "types", "passed", "share", "slots", "answer")
    return {name: record[name] for name in kept}
