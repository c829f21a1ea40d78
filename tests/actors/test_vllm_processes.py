"""vLLM's children: they find our plug-in in a tree that is not installed, read weights from
memory, and never outlive their parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

import actors
from actors.rollout import EngineFailedError, RolloutActor
from actors.vllm_engine import VllmEngine
from actors.vllm_processes import PLUGIN_GROUP, PLUGIN_NAME, WeightFile, child_environment
from safeladder.config import ModelConfig, RolloutConfig, VllmConfig
from safeladder.records import GroupKey, Lease

from .conftest import DictStore, Laboratory, ask, draw, publish, tiny_model, tiny_tokenizer

ROOT = Path(actors.__file__).parent.parent
ORPHAN_LIMIT_S = 10.0

FIND_PLUGIN = f"""
import importlib.metadata
points = importlib.metadata.entry_points(group={PLUGIN_GROUP!r})
print([point.value for point in points if point.name == {PLUGIN_NAME!r}])
"""

SHIPPED_JOB = """
import asyncio, json, sys
from pathlib import Path
import psutil
from actors.vllm_engine import VllmEngine
from safeladder.config import ModelConfig, RolloutConfig, VllmConfig
from tests.actors.conftest import Laboratory, ask, draw, tiny_model, tiny_tokenizer

async def main():
    small = RolloutConfig(max_prompt_tokens=80, max_new_tokens=80,
                          vllm=VllmConfig(cpu_kv_cache_gib=0.1, max_num_seqs=4))
    engine = VllmEngine(ModelConfig(path=Path(sys.argv[1]), dtype="float32"), small, seed=0)
    await engine.start()
    lab = Laboratory(engine, None, {0: tiny_model(tiny_tokenizer())})
    await lab.update(*lab.prepare())
    (answer,) = await lab.answers(ask("hi"), draw(1, 4))
    children = [p.pid for p in psutil.Process().children(recursive=True)]
    print(json.dumps({"versions": answer.token_versions.tolist(), "children": children}))
    sys.stdout.flush()
    await lab.answers(ask("hi"), draw(4, 80), "in flight")
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


def engine_children() -> list[psutil.Process]:
    """All descendants but Python's own resource tracker, which lives as long as this process."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if is_ours(p)]


def is_ours(process: psutil.Process) -> bool:
    """Whether it lives and is no helper of multiprocessing; one that just died is neither."""
    try:
        return "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:
        return False


def alive(pids: list[int]) -> list[int]:
    return [
        pid
        for pid in pids
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def wait_until_gone(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + ORPHAN_LIMIT_S
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return alive(pids)


@contextmanager
def shipped_job(folder: Path, model_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A job in its own folder which sees this tree on its path and nothing installed."""
    script = folder / "job.py"
    script.write_text(SHIPPED_JOB)
    inherited = os.environ.get("PYTHONPATH", "")
    job = subprocess.Popen(
        [sys.executable, str(script), str(model_path)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), inherited]))},
        stdout=subprocess.PIPE,
        text=True,
    )
    with job:
        try:
            yield job
        finally:
            job.kill()


def test_children_find_the_plug_in_of_a_tree_that_is_not_installed(tmp_path: Path) -> None:
    before = dict(os.environ), sys.path.copy()
    with child_environment(enforce_eager=True):
        found = subprocess.check_output([sys.executable, "-c", FIND_PLUGIN], cwd=tmp_path)
        assert str(ROOT) in sys.path
    assert found.decode().strip() == "['actors.vllm_weights:register']"
    assert (dict(os.environ), sys.path) == before


def test_a_weight_file_is_read_by_its_path_and_leaves_nothing_behind() -> None:
    state = dict(tiny_model(tiny_tokenizer()).named_parameters())
    manifest, raw = publish(state, ["model.norm.weight", "model.embed_tokens.weight"], 1)
    with WeightFile(manifest.tensors, raw) as file:
        info = file.update_info(manifest)
        content = np.fromfile(info["path"], dtype=np.uint8)
    for spec, offset in zip(manifest.tensors, info["offsets"], strict=True):
        assert offset % 64 == 0
        assert np.array_equal(content[offset : offset + raw[spec.name].size], raw[spec.name])
    assert not Path(info["path"]).exists()


@pytest.mark.engine
def test_a_shipped_job_updates_vllm_and_leaves_no_process_when_killed(
    model_path: Path, tmp_path: Path
) -> None:
    with shipped_job(tmp_path, model_path) as job:
        assert job.stdout is not None
        report = json.loads(next(line for line in job.stdout if line.startswith("{")))
        assert report["versions"] == [1] * len(report["versions"])
        assert alive(report["children"])
        job.send_signal(signal.SIGKILL)
        assert wait_until_gone(report["children"]) == []


@pytest.mark.engine
def test_a_killed_engine_process_fails_what_is_in_flight_and_close_leaves_no_child(
    model_path: Path,
) -> None:
    small = RolloutConfig(
        max_prompt_tokens=80,
        max_new_tokens=200,
        vllm=VllmConfig(cpu_kv_cache_gib=0.1, max_num_seqs=4),
    )
    engine = VllmEngine(ModelConfig(path=model_path, dtype="float32"), small, seed=0)
    actor = RolloutActor("rollout-0", engine, DictStore())
    lease = Lease(
        key=GroupKey(0, 0), attempt=1, fence=1, prompt=ask("hi"), sampling=draw(4, 200),
        deadline_s=60,
    )  # fmt: skip

    async def work() -> None:
        lab = Laboratory(engine, asyncio.Runner(), {0: tiny_model(tiny_tokenizer())})
        await actor.start()
        running = asyncio.ensure_future(actor.generate(lease))
        await lab.pause_after("0/0/1", 2)
        for child in engine_children():
            child.kill()
        failure = await running
        assert (failure.cause, failure.retryable) == ("engine_error", True)
        assert (await actor.status()).is_dead
        with pytest.raises(EngineFailedError):
            await engine.pause()
        await actor.close()

    asyncio.run(asyncio.wait_for(work(), 120))
    assert engine_children() == []
