"""``profiles.json`` of a run: what each rollout engine measured of itself, by fleet.

Light, so that a plan can be made from it without Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cluster.run_directory import write_json
from safeladder.engine_profile import EngineProfile
from safeladder.errors import ConfigError
from safeladder.paths import read_bytes


def write_profiles(path: Path, profiles: Mapping[str, Mapping[str, EngineProfile]]) -> None:
    """Fleet → engine → profile."""
    rows = {
        fleet: {engine: profile.as_row() for engine, profile in engines.items()}
        for fleet, engines in profiles.items()
    }
    write_json(path, rows)


def read_profiles(path: Path) -> dict[str, dict[str, EngineProfile]]:
    """What ``write_profiles`` wrote; empty if there is no file. Raises ``ConfigError`` if it cannot
    be read."""
    try:
        rows = json.loads(read_bytes(path))
        return {
            fleet: {engine: EngineProfile.from_row(row) for engine, row in engines.items()}
            for fleet, engines in rows.items()
        }
    except FileNotFoundError:
        return {}
    except KeyError as error:
        raise ConfigError(f"{path} is no file of profiles: an engine without {error}") from None
    except (ValueError, OverflowError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is no file of profiles: {error}") from None
