"""A version leaves in chunks, as it was when it was asked for, whatever trains meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from learners.publication import Publisher
from learners.safetensors_stream import Slot
from safeladder.tensors import verify
from tests.learners.ranks import MemoryStore

CHUNK_BYTES = 300


class Weights:
    """What a publisher sees of an engine."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        shapes = {"a": (64,), "b": (8, 8), "large": (20, 20), "c": (3,), "d": (5, 2)}
        self.parameters = {
            name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()
        }
        self.num_gathered = 0
        self.broken: str | None = None

    def weight_slots(self, *, only_trained: bool) -> dict[str, Slot]:
        return {n: Slot("bfloat16", tuple(p.shape)) for n, p in self.parameters.items()}

    def weights(self, *, only_trained: bool) -> Iterator[tuple[str, torch.Tensor | None]]:
        for name, parameter in self.parameters.items():
            if name == self.broken:
                raise RuntimeError("a rank is gone")
            self.num_gathered += 1
            yield name, parameter.clone() if self.rank == 0 else None

    def train(self) -> None:
        for parameter in self.parameters.values():
            parameter.add_(1)


class SlowStore(MemoryStore):
    """Stores nothing until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def put(self, value: Any) -> Any:
        await self.opened.wait()
        return value


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def publish(weights: Weights, thread: ThreadPoolExecutor) -> Any:
    publisher = Publisher(MemoryStore(), CHUNK_BYTES)
    return asyncio.run(publisher.publish(weights, thread, 3, 1))  # type: ignore[arg-type]


def test_no_chunk_is_larger_than_the_limit_unless_a_tensor_is(thread: ThreadPoolExecutor) -> None:
    weights = Weights()
    manifest, payload = publish(weights, thread)
    assert [list(chunk) for chunk in payload.chunks] == [["a", "b"], ["large"], ["c", "d"]]
    raw = {name: array for chunk in payload.chunks for name, array in chunk.items()}
    verify(manifest, raw)
    for spec in manifest.tensors:
        found = torch.from_numpy(raw[spec.name]).view(torch.bfloat16).view(spec.shape)
        assert torch.equal(found, weights.parameters[spec.name]), spec.name


def test_a_version_is_what_it_was_however_long_the_store_takes(thread: ThreadPoolExecutor) -> None:
    async def work() -> tuple[Any, bool]:
        store = SlowStore()
        running = asyncio.ensure_future(
            Publisher(store, CHUNK_BYTES).publish(weights, thread, 3, 1)  # type: ignore[arg-type]
        )
        await asyncio.sleep(0)
        for _ in range(3):  # the next steps do not wait for the store
            await asyncio.get_running_loop().run_in_executor(thread, weights.train)
        is_waiting = not running.done()
        store.opened.set()
        return await running, is_waiting

    weights = Weights()
    before = {name: parameter.clone() for name, parameter in weights.parameters.items()}
    (manifest, payload), is_waiting = asyncio.run(work())
    assert is_waiting
    raw = {name: array for chunk in payload.chunks for name, array in chunk.items()}
    verify(manifest, raw)
    for name, parameter in before.items():
        assert torch.equal(torch.from_numpy(raw[name]).view(torch.bfloat16), parameter.flatten())


def test_other_ranks_gather_all_tensors_and_publish_nothing(thread: ThreadPoolExecutor) -> None:
    weights = Weights(rank=1)
    assert publish(weights, thread) is None
    assert weights.num_gathered == len(weights.parameters)


def test_a_gather_that_fails_half_way_publishes_nothing(thread: ThreadPoolExecutor) -> None:
    weights = Weights()
    weights.broken = "c"
    with pytest.raises(RuntimeError, match="a rank is gone"):
        publish(weights, thread)
