"""From publisher to engine: whole versions and deltas are the same bytes, nothing else passes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from actors.weight_intake import WeightIntake
from learners.publication import Publisher
from learners.safetensors_stream import Slot
from safeladder.errors import ChecksumError
from safeladder.records import WeightManifest
from safeladder.weight_payload import WeightPayload

CHUNK_BYTES = 3000


class Policy:
    """What a publisher sees of an engine: bfloat16 weights of which few change in a step."""

    rank = 0

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self.parameters = {
            name: torch.randn(shape, generator=self._generator).bfloat16()
            for name, shape in {"a": (1000,), "b": (40, 60), "still": (50,), "c": (7,)}.items()
        }

    def weight_slots(self, *, only_trained: bool) -> dict[str, Slot]:
        return {n: Slot("bfloat16", tuple(p.shape)) for n, p in self.parameters.items()}

    def weights(self, *, only_trained: bool) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((name, parameter.clone()) for name, parameter in self.parameters.items())

    def step(self, share: float) -> None:
        for name, parameter in self.parameters.items():
            if name != "still":
                moves = torch.rand(parameter.shape, generator=self._generator) < share
                parameter[moves] *= 1.01


class MappedStore:
    """Values are kept as they are when they are put, and read without a copy, as by Ray."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    async def put(self, value: Any) -> int:
        kept = {name: raw.copy() for name, raw in value.items()}
        for raw in kept.values():
            raw.flags.writeable = False
        self.values.append(kept)
        return len(self.values) - 1

    async def get(self, handle: int) -> Any:
        if not self.values[handle]:
            raise KeyError("payload is gone")
        return self.values[handle]

    def damage(self, handle: int) -> None:
        name, raw = next(iter(self.values[handle].items()))
        self.values[handle][name] = raw.copy()
        self.values[handle][name][-1] ^= 1

    def lose(self, handle: int) -> None:
        self.values[handle] = {}


class Run:
    """A policy that is published again and again, and an engine's intake."""

    def __init__(self) -> None:
        self.policy = Policy()
        self.store = MappedStore()
        self.publisher = Publisher(self.store, CHUNK_BYTES, delta=True)
        self.intake = WeightIntake(self.store, delta=True)
        self.version = 0
        self._thread = ThreadPoolExecutor(1)

    def publish(self, share: float = 0.01) -> tuple[WeightManifest, WeightPayload]:
        self.version += 1
        self.policy.step(share)
        engine: Any = self.policy
        published = asyncio.run(self.publisher.publish(engine, self._thread, self.version, 1))
        assert published is not None
        return published

    def take(self, published: tuple[WeightManifest, WeightPayload]) -> dict[str, Any]:
        """What the intake reads, held against what a reader of the whole version reads."""
        found = asyncio.run(self.intake.take(*published))
        whole = asyncio.run(WeightIntake(self.store).take(*published))
        assert found.keys() == whole.keys()
        assert all(np.array_equal(found[name], whole[name]) for name in whole)
        return dict(found)


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_chain_of_deltas_is_byte_for_byte_the_whole_versions(run: Run) -> None:
    for _ in range(5):
        run.take(run.publish())
    assert run.intake.deltas_taken == 4


def test_a_version_read_as_a_delta_is_what_the_policy_was(run: Run) -> None:
    run.take(run.publish())
    found = run.take(run.publish())
    for name, parameter in run.policy.parameters.items():
        assert torch.equal(torch.from_numpy(found[name]).view(torch.bfloat16), parameter.flatten())


def test_a_delta_holds_only_what_changed(run: Run) -> None:
    run.publish()
    before = {name: parameter.clone() for name, parameter in run.policy.parameters.items()}
    _, payload = run.publish()
    changed = sum(int((p != before[n]).sum()) for n, p in run.policy.parameters.items())
    delta = payload.delta
    assert delta is not None
    assert delta.num_changed == changed
    names = {name for handle in delta.chunks for name in run.store.values[handle]}
    assert "a" in names
    assert "still" not in names


def test_an_engine_that_missed_a_version_reads_the_whole_next_one(run: Run) -> None:
    run.take(run.publish())
    run.publish()
    run.take(run.publish())
    assert run.intake.deltas_taken == 0
    run.take(run.publish())
    assert run.intake.deltas_taken == 1


def test_a_version_of_which_most_changed_has_no_delta(run: Run) -> None:
    run.take(run.publish())
    _, payload = published = run.publish(share=1.0)
    assert payload.delta is None
    run.take(published)


@pytest.mark.parametrize("fault", ["damage", "lose"])
def test_a_bad_delta_costs_a_read_of_the_whole_version_and_nothing_else(
    run: Run, fault: str
) -> None:
    run.take(run.publish())
    _, payload = published = run.publish()
    assert payload.delta is not None
    getattr(run.store, fault)(payload.delta.chunks[0])
    run.take(published)
    assert run.intake.deltas_taken == 0
    run.take(run.publish())
    assert run.intake.deltas_taken == 1


@pytest.mark.parametrize(("fault", "error"), [("damage", ChecksumError), ("lose", KeyError)])
def test_a_bad_version_is_refused_and_the_next_one_read_whole(
    run: Run, fault: str, error: type[Exception]
) -> None:
    run.take(run.publish())
    _, payload = published = run.publish()
    assert payload.delta is not None
    getattr(run.store, fault)(payload.delta.chunks[0])
    getattr(run.store, fault)(payload.chunks[0])
    with pytest.raises(error):
        asyncio.run(run.intake.take(*published))
    run.take(run.publish())
    assert run.intake.deltas_taken == 0


def test_no_read_changes_what_the_store_holds(run: Run) -> None:
    first = run.publish()
    run.take(first)
    before = [{n: raw.copy() for n, raw in value.items()} for value in run.store.values]
    run.take(run.publish())
    for kept, now in zip(before, run.store.values, strict=False):
        assert all(np.array_equal(kept[name], now[name]) for name in kept)


def test_without_deltas_neither_side_keeps_a_version(run: Run) -> None:
    publisher = Publisher(run.store, CHUNK_BYTES)
    engine: Any = run.policy
    with ThreadPoolExecutor(1) as thread:
        for version in (1, 2):
            published = asyncio.run(publisher.publish(engine, thread, version, 1))
            assert published is not None
            assert published[1].delta is None
    tensors = asyncio.run(WeightIntake(run.store).take(*published))
    assert all(raw.base is None for raw in tensors.values())
    assert all(not raw.flags.writeable for raw in tensors.values())
