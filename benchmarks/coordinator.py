"""Events per second of the coordinator and its ledger, on one core: ``python -m
benchmarks.coordinator``.

A whole run is played against roles that answer at once: 8 engines, 2 principles, reference on, 64
groups of 8 in a step, staleness bound 2. Timed is what the driver's loop does with a batch of
events: ``handle`` for each, then one ledger commit (SQLite in WAL mode, ``synchronous=FULL``, on
disk). Making the answers is not timed: in a real run other processes do that.

The last line is one JSON object; the exit code is 0 only if the bar holds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from cluster.coordinator import Coordinator
from cluster.ledger import Ledger
from cluster.panel import verifier_fleet
from cluster.performance import NumberedPrompts
from cluster.protocol import (
    REFERENCE,
    ROLLOUT,
    ActorJoined,
    Command,
    EngineServing,
    Event,
    Finish,
    GrantLease,
    GroupGenerated,
    LoadWeights,
    Publish,
    ReferenceReady,
    Score,
    ScoreReference,
    StepCommitted,
    Tick,
    Train,
    VerdictsReady,
    WeightsPublished,
)
from safeladder.config import Config
from safeladder.records import (
    GroupHeader,
    Lease,
    StepReport,
    Verdict,
    VerdictStatus,
)

BAR = 5000
BATCH = 100
"""Events of one turn of the loop, and so of one commit."""
STEPS = 60
REPEATS = 3
"""The best counts: the others tell of what else the machine had to do."""
PROMPTS_PER_PASS = 2000


def build_config(steps: int) -> Config:
    """The run that is played."""
    judge = {"verifier": "rewards.safety:SafetyRules"}
    return Config.model_validate(
        {
            "run": {"name": "benchmark", "steps": steps},
            "model": {"path": "none"},
            "data": {"train": []},
            "principles": {"safety": judge, "format": judge},
            "routes": {"safety": {"safety": 1.0, "format": 0.5}},
            "rollout": {"group_size": 8, "max_concurrent_groups": 16},
            "reference": {"kl_coefficient": 0.05},
            "schedule": {"groups_per_step": 64, "max_staleness": 2},
        }
    )


def answer(command: Command, versions: dict[str, int]) -> list[Event]:
    """What the roles say to a command. ``versions`` is what each engine serves."""
    match command:
        case GrantLease(engine=engine, lease=lease):
            return [GroupGenerated(_header(lease, engine, versions[engine]), str(lease.key))]
        case Score():
            verdicts = tuple(_verdict(command, index) for index in command.indexes)
            return [
                VerdictsReady(command.key, command.attempt, command.fleet, command.call, verdicts)
            ]
        case ScoreReference():
            payload = f"reference of {command.payload}"
            return [ReferenceReady(command.key, command.attempt, command.call, payload)]
        case Train(order=order):
            step = order.step
            return [StepCommitted(StepReport(step=step, version=step, metrics={}, seconds=0.0))]
        case Publish(version=version):
            return [WeightsPublished(version)]
        case LoadWeights(engine=engine, version=version):
            versions[engine] = version
            return [EngineServing(engine, version)]
        case _:
            return []


def measure(path: Path, steps: int) -> tuple[int, float, float]:
    """Play a run of ``steps`` steps with its ledger at ``path``: (events, seconds, processor
    seconds of this process)."""
    config = build_config(steps)
    versions = {f"engine-{i}": 0 for i in range(8)}
    events: deque[Event] = deque([Tick(0.0)])
    events += [ActorJoined(ROLLOUT, engine, 16) for engine in versions]
    fleets = [verifier_fleet("safety"), verifier_fleet("format"), REFERENCE]
    events += [ActorJoined(fleet, fleet, 256) for fleet in fleets]
    events += [EngineServing(engine, 0) for engine in versions]
    num_events, seconds, cpu_s, commands = 0, 0.0, 0.0, list[Command]()
    with Ledger.open(path, config.run.name) as ledger:
        fence = ledger.raise_fence()
        coordinator = Coordinator(config, NumberedPrompts("safety", PROMPTS_PER_PASS), fence)
        while not any(isinstance(command, Finish) for command in commands):
            batch = [events.popleft() for _ in range(min(BATCH, len(events)))]
            batch.append(Tick(num_events * 1e-4))
            started, cpu_started = time.perf_counter(), time.process_time()
            commands = [command for event in batch for command in coordinator.handle(event)]
            ledger.apply(coordinator.drain_transitions(), fence)
            seconds += time.perf_counter() - started
            cpu_s += time.process_time() - cpu_started
            num_events += len(batch)
            for command in commands:
                events += answer(command, versions)
        problems = ledger.audit(groups_per_step=64, max_staleness=2)
    if problems:
        raise RuntimeError(f"the ledger is not sound: {problems}")
    return num_events, seconds, cpu_s


def main() -> int:
    """Measure on one core and print the figure."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures = []
    for _ in range(REPEATS):
        # Not in the system's temporary folder, which may be memory.
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
            num_events, seconds, cpu_s = measure(Path(folder) / "ledger.sqlite", STEPS)
        figures.append(round(num_events / seconds))
        print(
            f"{num_events} events in {seconds:.2f} s, of it {cpu_s:.2f} s of processor time: "
            f"{figures[-1]} events/s"
        )
    result = {
        "name": "coordinator",
        "figure": max(figures),
        "unit": "events/s",
        "bar": BAR,
        "holds": max(figures) >= BAR,
        "repeats": figures,
        "events_per_commit": BATCH,
    }
    print(json.dumps(result))
    return 0 if result["holds"] else 1


def _header(lease: Lease, engine: str, version: int) -> GroupHeader:
    return GroupHeader(
        key=lease.key,
        attempt=lease.attempt,
        fence=lease.fence,
        engine=engine,
        lengths=(128,) * lease.sampling.num_samples,
        min_version=version,
        max_version=version,
        sha256="0" * 64,
        generate_s=1.0,
    )


def _verdict(call: Score, index: int) -> Verdict:
    return Verdict(
        sample_id=f"{call.key}/{index}",
        principle=call.principle,
        verifier="benchmark",
        verifier_version="1",
        status=VerdictStatus.OK,
        score=index / 8,
    )


if __name__ == "__main__":
    sys.exit(main())
