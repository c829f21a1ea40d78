"""The list of attacks on the sandbox; ``sandbox_attacks`` imports the modules that fill it.

Attacks marked ``hostile`` would harm the machine outside a process namespace; see
``sandbox_attacks`` for who keeps them from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Info = dict[str, Any]


@dataclass(frozen=True)
class Attack:
    """One way of misbehaving."""

    run: Callable[[Info], Any]
    tries: str
    is_hostile: bool
    is_probe: bool
    """Its returning 1 is the breach; otherwise any number in range is its own to give."""


ATTACKS: dict[str, Attack] = {}


def attack(
    tries: str, hostile: bool = False, probe: bool = False
) -> Callable[[Callable[[Info], Any]], Callable[[Info], Any]]:
    """Register a function under its name."""

    def register(run: Callable[[Info], Any]) -> Callable[[Info], Any]:
        ATTACKS[run.__name__] = Attack(run, tries, hostile, probe)
        return run

    return register
