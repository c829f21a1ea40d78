"""What rank 0 records of its steps, beside an engine that only counts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from learners.learner import Learner
from learners.publication import Publisher
from safeladder.records import TensorSpec, WeightManifest
from tests.learners.ranks import MemoryStore, make_config, make_order


class Engine:
    """What the role itself asks of an engine."""

    def reduce(self, values: dict[str, float], how: str) -> dict[str, float]:
        return values

    def close(self) -> None:
        pass


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    async def publish(
        self: Publisher, engine: Any, thread: Any, version: int, fence: int
    ) -> tuple[WeightManifest, None]:
        spec = TensorSpec(name="w", dtype="float32", shape=(1,), checksum=str(version))
        return WeightManifest(version=version, fence=fence, tensors=(spec,)), None

    monkeypatch.setattr(Publisher, "publish", publish)
    monkeypatch.setattr("learners.learner.start_engine", lambda *_: (Engine(), None))
    monkeypatch.setattr(
        "learners.learner.update_policy",
        lambda engine, samples, version, config: {"loss": 0.1 * 3, "trained_tokens": 4.0},
    )


async def two_steps(rank: int, root: Path, fence: int) -> list[str]:
    learner = Learner(rank, 2, make_config(root / "model", root), MemoryStore())
    await learner.start("127.0.0.1", 1, root / "model")
    digests = []
    for step in (1, 2):
        await learner.train(make_order(step, fence=fence))
        await learner.train(make_order(step, fence=fence))  # asked again: answered, not trained
        published = await learner.publish(step, fence)
        assert published is not None
        digests.append(published[0].digest)
    await learner.close()
    return digests


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "tiny" / "steps.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("played")
def test_each_driver_records_its_settings_each_step_once_and_each_version(tmp_path: Path) -> None:
    digests = asyncio.run(two_steps(0, tmp_path, fence=1))
    asyncio.run(two_steps(0, tmp_path, fence=2))
    found = rows(tmp_path)
    places = [(r["kind"], r["fence"], r.get("step", r.get("version"))) for r in found]
    one_driver = [("learner", None), ("step", 1), ("version", 1), ("step", 2), ("version", 2)]
    assert places == [(kind, fence, at) for fence in (1, 2) for kind, at in one_driver]
    assert found[1]["metrics"] == {"loss": 0.1 * 3, "trained_tokens": 4.0}, "clocks are left out"
    assert [found[2]["digest"], found[4]["digest"]] == digests
    assert found[0]["settings"]["learner.lr"] == 1e-2
    assert found[0]["environment"]["ranks"] == "1"


@pytest.mark.usefixtures("played")
def test_a_step_is_on_record_before_its_report_is_given(tmp_path: Path) -> None:
    async def one_step() -> list[dict[str, Any]]:
        learner = Learner(0, 1, make_config(tmp_path / "model", tmp_path), MemoryStore())
        await learner.start("127.0.0.1", 1, tmp_path / "model")
        await learner.train(make_order(1))
        found = rows(tmp_path)
        await learner.close()
        return found

    assert [row["kind"] for row in asyncio.run(one_step())] == ["learner", "step"]
