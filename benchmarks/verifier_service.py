"""The verifier service against a bare gRPC echo of the same bytes: ``python -m
benchmarks.verifier_service``.

The format verifier, bodies of 4 KiB, 16 clients with a connection each, every call new work.
Server and clients are two processes; rounds of echo and service alternate, in plain text and over
mTLS. What counts is the median of the ratios of neighbouring rounds, so that a machine whose speed
drifts, or that is busy with something else, slows both. Then rounds with and without an attack
alternate over mTLS: 1,000 connections that never say what they want, and hostile bodies from a
client with a good certificate, ten in a second.

Clients send and receive raw bytes in both cases: what is compared is the servers. The last line is
one JSON object; the exit code is 0 only if all bars hold. ``--short`` takes seconds, says little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.verifier_load import HOSTILE_PER_S, Attack, Load, Round
from benchmarks.verifier_servers import ECHO, SERVICE, make_certificates

MIN_THROUGHPUT = 0.8
MAX_P99 = 2.0
MAX_P99_ATTACKED = 1.5
MIN_HOSTILE_PER_S = 0.9 * HOSTILE_PER_S


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int
    round_s: float
    warm_up_s: float


FULL = Plan(rounds=15, round_s=2.5, warm_up_s=3.0)
SHORT = Plan(rounds=3, round_s=0.6, warm_up_s=0.4)


async def compare(ports: Mapping[str, int], folder: Path, plan: Plan) -> dict[str, float]:
    """Echo and service in turn, plain and over mTLS: figures by name."""
    figures: dict[str, float] = {}
    for way, certificates in (("plain", None), ("mtls", folder)):
        async with (
            Load(ports[f"echo {way}"], ECHO, certificates) as echo,
            Load(ports[f"service {way}"], SERVICE, certificates) as service,
        ):
            rounds: dict[str, list[Round]] = {"echo": [], "service": []}
            for load in (echo, service):
                await load.run(plan.warm_up_s)
            for _ in range(plan.rounds):
                rounds["echo"].append(await echo.run(plan.round_s))
                rounds["service"].append(await service.run(plan.round_s))
            service.check_answers()
        for name, measured in rounds.items():
            figures[f"{way}_{name}_per_s"] = median(one.per_s for one in measured)
            figures[f"{way}_{name}_p99_ms"] = median(one.p99_ms for one in measured)
        pairs = list(zip(rounds["service"], rounds["echo"], strict=True))
        figures[f"{way}_ratio_per_s"] = median(own.per_s / bare.per_s for own, bare in pairs)
        figures[f"{way}_ratio_p99_ms"] = median(own.p99_ms / bare.p99_ms for own, bare in pairs)
    return figures


async def attack(port: int, folder: Path, plan: Plan) -> dict[str, float]:
    """Good clients over mTLS, with and without the attack in turn: figures by name."""
    quiet: list[Round] = []
    attacked: list[Round] = []
    async with Load(port, SERVICE, folder) as load, Attack(port, folder) as attacker:
        await load.run(plan.warm_up_s)
        for _ in range(plan.rounds):
            quiet.append(await load.run(plan.round_s))
            await attacker.begin()
            attacked.append(await load.run(plan.round_s))
            await attacker.end()
        load.check_answers()
    figures = {
        "quiet_p99_ms": median(one.p99_ms for one in quiet),
        "attacked_p99_ms": median(one.p99_ms for one in attacked),
        "attacked_per_s": median(one.per_s for one in attacked),
        "slow_connections": attacker.connections,
        "hostile_sent": attacker.hostile_sent,
        "hostile_refused": attacker.hostile_refused,
        "hostile_per_s": attacker.hostile_sent / (plan.rounds * plan.round_s),
    }
    figures["attacked_ratio_p99_ms"] = median(
        under.p99_ms / calm.p99_ms for under, calm in zip(attacked, quiet, strict=True)
    )
    return figures


def measure(plan: Plan) -> dict[str, float]:
    """All figures, against servers in a process of their own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_certificates(folder)
        command = [sys.executable, "-m", "benchmarks.verifier_servers", name]
        pipe = subprocess.PIPE
        # gRPC writes a line for every handshake that fails: thousands under attack.
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet) as servers:
            try:
                assert servers.stdout is not None
                ports = json.loads(servers.stdout.readline())
                figures = asyncio.run(compare(ports, folder, plan))
                return figures | asyncio.run(attack(ports["service mtls"], folder, plan))
            finally:
                servers.terminate()


def bars(figures: Mapping[str, float]) -> dict[str, bool]:
    """Which bars hold."""
    held = {}
    for way in ("plain", "mtls"):
        held[f"{way} throughput"] = figures[f"{way}_ratio_per_s"] >= MIN_THROUGHPUT
        held[f"{way} p99"] = figures[f"{way}_ratio_p99_ms"] <= MAX_P99
    held["p99 under attack"] = figures["attacked_ratio_p99_ms"] <= MAX_P99_ATTACKED
    held["hostile refused"] = figures["hostile_refused"] == figures["hostile_sent"]
    held["hostile rate"] = figures["hostile_per_s"] >= MIN_HOSTILE_PER_S
    return held


def main() -> int:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="a few seconds, to see that it runs")
    plan = SHORT if parser.parse_args().short else FULL
    figures = {name: round(figure, 3) for name, figure in measure(plan).items()}
    for name, figure in figures.items():
        print(f"{name}: {figure:g}")
    held = bars(figures)
    result = {
        "name": "verifier_service",
        "figure": min(figures["plain_ratio_per_s"], figures["mtls_ratio_per_s"]),
        "unit": "of the echo's throughput",
        "bar": MIN_THROUGHPUT,
        "holds": all(held.values()),
        "bars": held,
        "rounds": plan.rounds,
        "round_s": plan.round_s,
        **figures,
    }
    print(json.dumps(result))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
