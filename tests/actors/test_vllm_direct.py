"""Versions that the learner sends, on a real vLLM engine: all but the wire, which is a loopback.

vLLM's own trainer and worker engines need GPUs; what they are told is checked here as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.rollout import EngineFailedError
from actors.vllm_direct import DirectRolloutActor, DirectTransfer
from actors.vllm_engine import VllmEngine
from safeladder.config import ModelConfig
from safeladder.ports import PeerFailedError
from safeladder.records import WeightManifest
from safeladder.weight_payload import WeightPayload

from .conftest import (
    EXACT,
    LONG,
    DictStore,
    Laboratory,
    ask,
    draw,
    error,
    publish,
    rollout_config,
    tiny_model,
    tiny_tokenizer,
)

pytestmark = pytest.mark.engine

DEADLINE_S = 60.0


class LocalPeer:
    """A role in this process."""

    def __init__(self, role: Any) -> None:
        self.role = role
        self.calls: list[str] = []
        self.stuck_at: str | None = "never"
        self.before: Callable[[Mapping[str, Any]], Any] = lambda arguments: None

    async def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        self.calls.append(arguments.get("step", method))
        if arguments.get("step") == self.stuck_at:
            await asyncio.sleep(DEADLINE_S)
        try:
            self.before(arguments)
            return await getattr(self.role, method)(**arguments)
        except Exception as failure:
            raise PeerFailedError(f"{method}: {failure}") from failure


class LocalLink:
    """The way to a sender in this process."""

    def __init__(self, sender: Any) -> None:
        self.sender = sender
        self.control: LocalPeer | None = None

    async def request(
        self, manifest: WeightManifest, payload: WeightPayload, engine: str, num_workers: int
    ) -> None:
        assert self.control is not None
        try:
            await self.sender.send(manifest, payload, engine, num_workers, self.control)
        except Exception as failure:
            raise PeerFailedError(f"send_weights: {failure}") from failure


class Stage:
    """A sender, an engine that it serves, and the calls between them."""

    def __init__(
        self, lab: Laboratory, store: DictStore, link: LocalLink, direct: DirectTransfer
    ) -> None:
        self.lab, self.store, self.direct = lab, store, direct
        self.actor = DirectRolloutActor("rollout-0", lab.engine, store, intake=direct)
        self.control = link.control = LocalPeer(self.actor)

    async def load(self, manifest: WeightManifest, raw: Any) -> Any:
        payload = await self.store.put_weights(raw)
        return await self.actor.load_weights(manifest, payload)


@pytest.fixture
def stage(model_path: Path) -> Iterator[Stage]:
    from actors.vllm_receivers import LoopbackTrainerInit, register_loopback_sender
    from actors.vllm_sender import VllmSender

    register_loopback_sender()
    store = DictStore()
    sender = VllmSender(store, lambda _: LoopbackTrainerInit(rank=0), DEADLINE_S, device="cpu")
    link = LocalLink(sender)
    direct = DirectTransfer(link, "rollout-0", "loopback", DEADLINE_S)
    model = ModelConfig(path=model_path, dtype="float32")
    engine = VllmEngine(model, rollout_config(), seed=0, direct=direct)
    with asyncio.Runner() as runner:
        lab = Laboratory(engine, runner, {0: tiny_model(tiny_tokenizer())})
        lab.run(engine.start(), timeout=180)
        try:
            yield Stage(lab, store, link, direct)
        finally:
            lab.run(engine.close())


def test_versions_that_the_learner_sends_are_served_and_one_that_arrives_wrong_never_is(
    stage: Stage,
) -> None:
    lab, control = stage.lab, stage.control
    for _ in range(2):
        manifest, raw = lab.prepare()
        assert lab.run(stage.load(manifest, raw)).has_loaded(manifest)
        (completion,) = lab.run(lab.answers(ask("hello"), draw(1, 12)))
        assert set(completion.token_versions.tolist()) == {lab.version}
        assert error(lab, completion, lab.version).max() < EXACT
    assert control.calls.count("init") == 1
    assert control.calls[0] == "init"
    assert [control.calls.count(step) for step in ("start", "finish")] == [2, 2]

    # The learner reads what the store has: a damaged version does not leave it.
    manifest, raw = lab.prepare()
    damaged = {**raw, "model.norm.weight": raw["model.norm.weight"] ^ 1}
    status = lab.run(stage.load(manifest, damaged))
    assert "has checksum" in status.failure
    assert (status.served_version, status.is_dead) == (2, False)

    # Damage on the wire is found by the receipt, and costs the engine.
    def damage(arguments: Mapping[str, Any]) -> None:
        info = arguments["info"]
        if info.get("name") == "model.norm.weight":
            info["raw"] = bytes([info["raw"][0] ^ 1]) + info["raw"][1:]

    control.before = damage
    status = lab.run(stage.load(manifest, raw))
    assert status.is_dead
    assert "echoes version 3" in status.failure


@pytest.mark.parametrize("stuck_at", ["init", "update"])
def test_a_transfer_that_gets_stuck_ends_at_its_deadline(stage: Stage, stuck_at: str) -> None:
    """An engine that was not touched yet serves on; one that was is spent, and says so."""

    async def work() -> tuple[Any, Any]:
        stage.direct.deadline_s = 3.0
        stage.control.stuck_at = stuck_at
        request = asyncio.ensure_future(stage.lab.answers(ask(LONG), draw(2, 60), "r"))
        await asyncio.sleep(0)
        status = await stage.load(*stage.lab.prepare())
        return status, (await asyncio.gather(request, return_exceptions=True))[0]

    status, answers = stage.lab.run(work())
    assert "not received within 3 s" in status.failure
    assert status.is_dead == (stuck_at == "update")
    if status.is_dead:
        assert isinstance(answers, EngineFailedError)
    else:
        assert {int(v) for completion in answers for v in completion.token_versions} == {0}


def test_vllm_is_told_of_a_group_of_its_own_for_each_engine() -> None:
    from actors.vllm_sender import describe_ipc, describe_nccl

    describe = describe_nccl("10.0.0.7")
    first, second = describe(1), describe(4)
    assert (first.backend, first.rank, first.world_size) == ("nccl", 0, 2)
    assert (second.world_size, second.master_address) == (5, "10.0.0.7")
    assert first.packed
    assert (describe_ipc(1).backend, describe_ipc(1).packed) == ("ipc", True)
    with pytest.raises(ValueError, match="serves one worker"):
        describe_ipc(2)


def test_vllm_knows_our_receivers_and_they_are_its_own_engines() -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    from actors.vllm_weights import RECEIVERS, backend_of, register

    register()
    known = WeightTransferEngineFactory._registry
    engines = {transport: known[backend_of(transport)]() for transport in RECEIVERS}
    assert issubclass(engines["nccl"], NCCLWeightTransferEngine)
    assert issubclass(engines["ipc"], IPCWeightTransferEngine)


def test_a_version_is_declared_as_it_is_then_sent() -> None:
    from actors.vllm_sender import StoredVersion

    state = dict(tiny_model(tiny_tokenizer()).named_parameters())
    manifest, raw = publish(state, list(state)[:5], 3)
    source = StoredVersion(manifest, raw, "cpu")
    sent = list(source)
    assert [(m.name, m.dtype, m.shape) for m in source.metadata()] == [
        (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent
    ]
    assert all(torch.equal(tensor, state[name]) for name, tensor in sent)
