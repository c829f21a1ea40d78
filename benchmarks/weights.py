"""How fast a version travels, and how small it can be: ``python -m benchmarks.weights``.

1. *Transport alone*: the weights of SmolLM2-135M in float32 (538 MB) are put into Ray's object
   store in chunks; an actor in another process maps and verifies them (xxh3-128 of every tensor,
   two threads). Beside each round stands a ``memcpy`` of the same bytes to memory already there.
   Figure: time of the copy / time from the first put to the last verified byte, median over the
   rounds. The checksums of the publishing side are made beside training and reported apart.
2. *Until an engine serves it*: a DeepSpeed learner publishes, vLLM loads. Reported.
3. *Deltas*: AdamW at lr 1e-6, bfloat16 weights with float32 masters; after step 10 each version is
   published as a delta too, and read as one by an actor that verifies the result against the
   checksums of the whole version. Bar: at most 3.5 bytes for each changed element.

The last line is one JSON object; the exit code is 0 only if both bars hold. ``--short`` shows in
seconds that it runs: a few tensors, no engine, fewer steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cluster.placement import engine_placement, placement_of, prepare_ray
from demo.convert_smollm2 import convert
from safeladder.config import Config
from safeladder.config_loading import load_config
from safeladder.records import TensorSpec, WeightManifest
from safeladder.tensors import RawBytes, checksum
from safeladder.weight_payload import WeightPayload, split

CONFIG = Path("configs/benchmarks/weights.yaml")
MEMCPY_BAR = 0.4
DELTA_BAR = 3.5
ROUNDS = 7
WARM_UP_ROUNDS = 3
PAUSE_S = 1.5
"""Between rounds, as a step would be: Ray frees objects once a second, and memory that it has had
before is quicker than memory that the system has yet to find (``first_transport_s``)."""
FIRST_DELTA_STEP = 10
CALL_S = 300.0
FENCE = 1

Figures = dict[str, Any]


def measure_transport(store: Any, reader: Any, raw: dict[str, RawBytes], config: Config) -> Figures:
    """Put, map and verify, with a copy of the same bytes beside it."""
    sizes = {name: array.nbytes for name, array in raw.items()}
    num_bytes = sum(sizes.values())
    target = {name: np.zeros_like(array) for name, array in raw.items()}
    runs = split(sizes, config.weights.chunk_bytes)
    times: dict[str, list[float]] = defaultdict(list)
    held = None
    for _ in range(WARM_UP_ROUNDS + ROUNDS):
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        for name, array in raw.items():
            np.copyto(target[name], array)
        times["memcpy"].append(time.perf_counter() - began)
        began = time.perf_counter()
        manifest = _manifest(raw)
        times["checksums"].append(time.perf_counter() - began)
        began = time.perf_counter()
        chunks = asyncio.run(_put_all(store, [{n: raw[n] for n in names} for names in runs]))
        payload = WeightPayload(chunks=tuple(chunks))
        times["put"].append(time.perf_counter() - began)
        reading = _ask(reader, "take", manifest=manifest, payload=payload)
        times["transport"].append(time.perf_counter() - began)
        times["read"].append(reading.seconds)
        place = _ask(reader, "take", manifest=manifest, payload=payload, look=True)
        if place.is_writeable or len(place.files) != 1:
            raise RuntimeError(f"the tensors were copied on their way: {place}")
        held = payload  # until the next version is there, as by the weight store
        del chunks, payload
    del held
    first = times["transport"][0]
    rounds = {name: taken[WARM_UP_ROUNDS:] for name, taken in times.items()}
    ratios = [m / t for m, t in zip(rounds["memcpy"], rounds["transport"], strict=True)]
    return {
        "megabytes": round(num_bytes / 1e6),
        "figure": round(median(ratios), 3),
        "rounds": [round(ratio, 3) for ratio in ratios],
        "memcpy_gb_per_s": _speed(num_bytes, rounds["memcpy"]),
        "transport_gb_per_s": _speed(num_bytes, rounds["transport"]),
        "put_gb_per_s": _speed(num_bytes, rounds["put"]),
        "read_and_verify_gb_per_s": _speed(num_bytes, rounds["read"]),
        "publisher_checksums_gb_per_s": _speed(num_bytes, rounds["checksums"]),
        "first_transport_s": round(first, 3),
    }


def measure_serving(config: Config, owner: Any) -> Figures:
    """Seconds of a publication by a real learner, and until a real vLLM engine serves it."""
    from actors.rollout import EngineStatus
    from cluster.learner_group import LearnerGroup, LearnerLost
    from cluster.remote import kill, spawn
    from cluster.roles import build_rollout

    def operation() -> Any:
        deadline = time.monotonic() + 2 * CALL_S
        while time.monotonic() < deadline:
            for event in learners.poll():
                if isinstance(event, LearnerLost):
                    raise RuntimeError(event.reason)
                return event.value
            time.sleep(0.002)
        raise TimeoutError("the learner gave no answer")

    learners = LearnerGroup(config, owner)
    (fleet,) = config.engine_fleets.values()
    rollout = spawn(
        "rollout-0",
        build_rollout,
        {"name": "rollout-0", "config": config, "fleet": fleet.name},
        engine_placement(fleet, config),
        owner=owner,
    )
    try:
        learners.start(config.model.path, None)
        operation()
        _ask(rollout, "start")
        published, served = [], []
        for version in range(1, 5):
            began = time.perf_counter()
            arguments = {"version": 0, "fence": FENCE}
            learners.call("publish", arguments, context="publish", deadline_s=CALL_S)
            manifest, payload = operation()
            published.append(time.perf_counter() - began)
            manifest = replace(manifest, version=version)  # else it is served already
            status = _ask(rollout, "load_weights", manifest=manifest, payload=payload)
            served.append(time.perf_counter() - began)
            if not isinstance(status, EngineStatus) or not status.has_loaded(manifest):
                raise RuntimeError(f"version {version} was not loaded: {status}")
    finally:
        learners.close()
        kill(rollout)
    return {
        "publish_s": round(median(published[1:]), 3),
        "publish_to_served_s": round(median(served[1:]), 3),
        "first_publish_to_served_s": round(served[0], 3),
    }


def measure_deltas(store: Any, reader: Any, config: Config, steps: int) -> Figures:
    """Size of what one step changes, and whether it comes back bit for bit."""
    from benchmarks.weight_steps import RoundedPolicy
    from learners.publication import Publisher

    policy: Any = RoundedPolicy(config)
    publisher = Publisher(store, config.weights.chunk_bytes, delta=True)
    first = min(FIRST_DELTA_STEP, steps - 1)
    versions: list[Figures] = []
    with ThreadPoolExecutor(1) as thread:
        for step in range(1, steps + 1):
            loss = policy.step()
            if step < first:
                continue
            began = time.perf_counter()
            published = asyncio.run(publisher.publish(policy, thread, step, FENCE))
            publish_s = time.perf_counter() - began
            assert published is not None
            manifest, payload = published
            reading = _ask(reader, "take", manifest=manifest, payload=payload)
            if step == first:
                continue
            if payload.delta is None or reading.deltas_taken != len(versions) + 1:
                raise RuntimeError(f"version {step} did not travel as a delta")
            delta = payload.delta
            num_elements = sum(int(np.prod(spec.shape)) for spec in manifest.tensors)
            versions.append(
                {
                    "step": step,
                    "loss": round(loss, 4),
                    "bytes_per_changed": delta.num_bytes / delta.num_changed,
                    "changed_share": delta.num_changed / num_elements,
                    "delta_megabytes": round(delta.num_bytes / 1e6, 3),
                    "of_whole": delta.num_bytes / manifest.num_bytes,
                    "publish_with_delta_s": round(publish_s, 3),
                    "read_delta_s": round(reading.seconds, 3),
                }
            )
    return {
        "bytes_per_changed": round(max(v["bytes_per_changed"] for v in versions), 3),
        "changed_share": round(median(v["changed_share"] for v in versions), 5),
        "of_whole": round(median(v["of_whole"] for v in versions), 5),
        "lossless": True,
        "versions": versions,
    }


async def _put_all(store: Any, chunks: Sequence[dict[str, RawBytes]]) -> list[Any]:
    return [await store.put(chunk) for chunk in chunks]


def _manifest(raw: dict[str, RawBytes]) -> WeightManifest:
    specs = [
        TensorSpec(name=n, dtype="float32", shape=(a.size // 4,), checksum=checksum(a))
        for n, a in raw.items()
    ]
    return WeightManifest(version=1, fence=FENCE, tensors=tuple(specs))


def _raw_weights(folder: Path, limit: int | None) -> dict[str, RawBytes]:
    """The model's tensors in float32 as bytes, at most ``limit`` of them."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    return {n: weights[n].float().numpy().reshape(-1).view(np.uint8) for n in list(weights)[:limit]}


def _ask(actor: Any, method: str, **arguments: Any) -> Any:
    from cluster.remote import PENDING, outcome, submit
    from cluster.role_host import RoleFailure

    value = outcome(submit(actor, method, arguments), CALL_S)
    if value is PENDING or isinstance(value, RoleFailure):
        raise RuntimeError(f"{method}: {value}")
    return value


def _speed(num_bytes: int, seconds: Sequence[float]) -> float:
    return round(num_bytes / median(seconds) / 1e9, 2)


def run(config: Config, *, short: bool) -> Figures:
    """All parts on one local Ray."""
    prepare_ray(config)
    from benchmarks.weight_reader import build_reader
    from cluster.remote import session, spawn
    from cluster.role_host import RayStore, build_store_owner

    raw = _raw_weights(config.model.path, limit=40 if short else None)
    with session(config):
        owner = spawn("store", build_store_owner, {}, placement_of("store", config))
        store = RayStore(owner)
        placement = placement_of("store", config)
        plain, patching = (
            spawn(name, build_reader, {"delta": name == "patching"}, placement, owner=owner)
            for name in ("plain", "patching")
        )
        for actor in (owner, plain, patching):
            _ask(actor, "start")
        transport = measure_transport(store, plain, raw, config)
        raw.clear()
        serving = {} if short else measure_serving(config, owner)
        deltas = measure_deltas(store, patching, config, steps=3 if short else config.run.steps)
    return {"transport": transport, "serving": serving, "deltas": deltas}


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object, return 0 if the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="show in seconds that it runs")
    parser.add_argument("overrides", nargs="*", help="key=value overrides of the config")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sl-bench-") as root:
        config = load_config([CONFIG], [f"run.root={root}", *options.overrides])
        convert(config.model.path)
        figures = run(config, short=options.short)
    holds = (
        figures["transport"]["figure"] >= MEMCPY_BAR
        and figures["deltas"]["bytes_per_changed"] <= DELTA_BAR
    )
    result = {
        "name": "weights",
        "figure": figures["transport"]["figure"],
        "unit": "memcpy time / (put + mapped read + checksum) time",
        "bar": MEMCPY_BAR,
        "delta_figure": figures["deltas"]["bytes_per_changed"],
        "delta_unit": "bytes per changed element",
        "delta_bar": DELTA_BAR,
        "holds": holds,
        "short": options.short,
        **figures,
    }
    print(json.dumps(result))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
