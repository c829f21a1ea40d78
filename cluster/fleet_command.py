"""The verb ``fleets``: what a run's engines measured, and how many there are to be."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from cluster.fleet_keeper import parse_sizes, resize_fleets
from cluster.profile_file import read_profiles
from cluster.run_directory import RunDirectory
from safeladder.engine_profile import EngineProfile


def fleets_command(run_dir: Path, settings: list[str], wait_s: float) -> int:
    """Print, or ask the run's driver. Returns the exit code."""
    if settings:
        typer.echo(resize_fleets(run_dir, parse_sizes(settings), wait_s))
        return 0
    profiles = read_profiles(RunDirectory.open(run_dir).profiles)
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.print(profile_table(profiles) if profiles else "no engine has joined yet")
    return 0


def profile_table(profiles: Mapping[str, Mapping[str, EngineProfile]]) -> Table:
    """One line for each engine that ever joined."""
    table = Table("engine", "cache (tokens)", "sequences", "tokens/s (at sequences)", "link (MB/s)")
    for engines in profiles.values():
        for name, profile in engines.items():
            speeds = ", ".join(f"{speed:.0f} ({size})" for size, speed in profile.speeds)
            link = profile.link_bytes_per_s
            table.add_row(
                name,
                f"{profile.kv_tokens:,}",
                str(profile.max_sequences),
                speeds or "not measured",
                "" if link is None else f"{link / 1e6:.0f}",
            )
    return table
