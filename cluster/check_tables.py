"""What ``check`` prints: verdicts on sample rows, and the plan of actors and memory."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cluster.checks import SampleVerdict
from cluster.resource_plan import RolePlan, host_memory_bytes, main_memory_bytes


def show_checks(scored: dict[str, list[SampleVerdict]], plan: list[RolePlan]) -> None:
    """Print both to stdout."""
    verdicts = Table("principle", "row", "response", "verdict", "why", title="Sample verdicts")
    for principle, samples in scored.items():
        for sample in samples:
            verdict = sample.verdict
            result = verdict.cause or verdict.label
            score = "" if verdict.score is None else f" {verdict.score:g}"
            text = f"{verdict.status}{score}" + (f" ({result})" if result else "")
            verdicts.add_row(
                principle, sample.prompt_id, sample.response[:40], text, verdict.evidence or ""
            )
    Console(soft_wrap=False, markup=False).print(verdicts)
    show_plan(plan)


def show_plan(plan: list[RolePlan]) -> None:
    """Print what the roles of a run take."""
    resources = Table(
        "role", "actors", "CPUs each", "GPUs each", "GiB each", "where", title="Resource plan"
    )
    for line in plan:
        where = " on the GPU" if line.num_gpus else ""
        if line.num_gpus > 1:
            where = f" on {line.num_gpus:g} GPUs"
        resources.add_row(
            line.role,
            str(line.actors),
            f"{line.num_cpus:g}",
            f"{line.num_gpus:g}",
            f"{line.num_bytes / 2**30:.1f}{where}",
            line.where,
        )
    console = Console(soft_wrap=False, markup=False)
    console.print(resources)
    console.print(
        f"Main memory, without activations: about {main_memory_bytes(plan) / 2**30:.1f} GiB of "
        f"{host_memory_bytes() / 2**30:.1f} GiB"
    )
