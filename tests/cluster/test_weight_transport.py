"""Versions in Ray's own object store: one copy on a node, mapped by all who read it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from benchmarks.weight_reader import Reading, build_reader, shared_file
from cluster.placement import Placement
from cluster.remote import kill, outcome, spawn, submit
from cluster.role_host import RayLink, RayPeer, RayStore, RoleFailure, build_store_owner
from safeladder.records import TensorSpec, WeightManifest
from safeladder.tensors import checksum
from safeladder.weight_payload import WeightPayload, split

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

MIB = 2**20


class Engine:
    """The engine's end of a transfer from GPU to GPU, as far as Ray is concerned."""

    def __init__(self, learner: RayPeer) -> None:
        self._link = RayLink(learner)
        self._steps: list[str] = []

    async def fetch(self, manifest: WeightManifest, payload: WeightPayload) -> list[str]:
        await self._link.request(manifest, payload, "rollout-0", 1)
        return self._steps

    async def transfer_step(self, step: str, info: dict[str, Any]) -> None:
        self._steps.append(step)
        if step == info["refused"]:
            raise ValueError("not now")


class Sender:
    """The learner's end."""

    async def send_weights(
        self, manifest: WeightManifest, payload: WeightPayload, engine: str, num_workers: int,
        control: RayPeer,
    ) -> None:  # fmt: skip
        for step in ("init", "start"):
            info = {"refused": "start" if manifest.version == 2 else None}
            await control.call("transfer_step", {"step": step, "info": info})


def build_sender() -> Sender:
    return Sender()


def build_engine(learner: RayPeer) -> Engine:
    return Engine(learner)


class Cluster:
    """A store on a local Ray, and readers in processes of their own."""

    def __init__(self) -> None:
        self.owner = spawn("store", build_store_owner, {}, Placement())
        self.store = RayStore(self.owner)
        self.readers = [
            spawn(f"reader-{i}", build_reader, {"delta": False}, Placement(), owner=self.owner)
            for i in range(2)
        ]

    def publish(self, raw: dict[str, Any]) -> tuple[WeightManifest, WeightPayload]:
        specs = tuple(
            TensorSpec(name=n, dtype="float32", shape=(a.size // 4,), checksum=checksum(a))
            for n, a in raw.items()
        )
        sizes = {name: array.nbytes for name, array in raw.items()}
        chunks = [{n: raw[n] for n in names} for names in split(sizes, 4 * MIB)]
        handles = tuple(asyncio.run(self.store.put(chunk)) for chunk in chunks)
        assert len(handles) > 2
        manifest = WeightManifest(version=1, fence=1, tensors=specs)
        return manifest, WeightPayload(chunks=handles)

    def read(self, manifest: WeightManifest, payload: WeightPayload) -> list[Any]:
        arguments = {"manifest": manifest, "payload": payload, "look": True}
        calls = [submit(reader, "take", arguments) for reader in self.readers]
        return [outcome(call, 60.0) for call in calls]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp") as temp:
        ray.init(
            address="local", num_cpus=4, include_dashboard=False, object_store_memory=200_000_000,
            _temp_dir=temp, log_to_driver=False, configure_logging=False,
        )  # fmt: skip
        try:
            yield Cluster()
        finally:
            ray.shutdown()


def tensors() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {f"t{i}": random.integers(0, 256, 3 * MIB, dtype=np.uint8) for i in range(4)}


def test_engines_of_one_node_look_at_the_same_memory_and_cannot_write_to_it(
    cluster: Cluster,
) -> None:
    published = cluster.publish(tensors())
    readings: list[Reading] = cluster.read(*published)
    chunk = asyncio.run(cluster.store.get(published[1].chunks[0]))
    own = {shared_file(raw) for raw in chunk.values()}
    assert next(iter(own))[1] != 0  # shared memory, not a copy in this process
    for reading in readings:
        assert reading.files == own
        assert not reading.is_writeable


def test_reading_a_version_twice_gives_the_same_bytes_in_the_same_place(cluster: Cluster) -> None:
    _, payload = cluster.publish(tensors())
    for handle in payload.chunks:
        first, second = (asyncio.run(cluster.store.get(handle)) for _ in range(2))
        for name, raw in first.items():
            assert np.lib.array_utils.byte_bounds(raw) == np.lib.array_utils.byte_bounds(
                second[name]
            )


def test_a_chunk_that_differs_from_its_manifest_is_refused_by_every_reader(
    cluster: Cluster,
) -> None:
    raw = tensors()
    manifest, payload = cluster.publish(raw)
    raw["t2"][5] ^= 1
    _, damaged = cluster.publish(raw)
    mixed = WeightPayload(chunks=(*payload.chunks[:2], damaged.chunks[2], *payload.chunks[3:]))
    for failure in cluster.read(manifest, mixed):
        assert isinstance(failure, RoleFailure)
        assert failure.kind == "ChecksumError"
        assert "t2" in failure.message


def test_an_engine_asks_the_learner_and_is_called_back_while_it_waits(cluster: Cluster) -> None:
    learner = spawn("learner-0", build_sender, {}, Placement())
    engine = spawn("rollout-0", build_engine, {"learner": RayPeer(learner)}, Placement())
    payload = WeightPayload(chunks=())
    one, two = (WeightManifest(version=v, fence=1, tensors=()) for v in (1, 2))
    arguments = {"manifest": one, "payload": payload}
    assert outcome(submit(engine, "fetch", arguments), 60.0) == ["init", "start"]
    failure = outcome(submit(engine, "fetch", {**arguments, "manifest": two}), 60.0)
    assert isinstance(failure, RoleFailure)
    assert failure.kind == "PeerFailedError"
    assert "not now" in failure.message
    kill(learner)
    lost = outcome(submit(engine, "fetch", arguments), 60.0)
    assert isinstance(lost, RoleFailure)
    assert lost.kind == "PeerFailedError"
