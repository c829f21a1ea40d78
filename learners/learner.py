"""The learner's role: one DeepSpeed rank as an actor with typed coroutines.

All torch work runs on one thread of its own, in the order of the calls, so that the event loop
answers pings meanwhile. Rank 0 alone writes files and publishes. Knows no verifier and no Ray; what
a step computes stands in ``policy_update`` and ``supervised``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from learners.batches import build_samples, write_batch
from learners.checkpoints import (
    INDEX,
    OPTIMIZER,
    RNG,
    WEIGHTS,
    CheckpointManifest,
    commit_checkpoint,
    copy_model_files,
    refuse_lower_fence,
    write_index,
)
from learners.deepspeed_engine import NamedTensors
from learners.engine_start import Place, start_engine
from learners.lora import ADAPTER
from learners.payloads import read_payloads
from learners.policy_model import VALUE_HEAD
from learners.policy_update import update_policy
from learners.preconditions import require_trainable
from learners.publication import Publisher, raw_bytes
from learners.row_plan import RowPlan
from learners.safetensors_stream import SafetensorsStream, Slot
from learners.stage import StageTrainer
from learners.stage_tasks import build_task
from learners.step_log import STEPS, StepLog
from learners.supervised import SftRow, train_supervised
from safeladder.commit_points import reached
from safeladder.config import Config, SftConfig
from safeladder.errors import FencedError
from safeladder.ports import PayloadStore, Peer, WeightSender
from safeladder.records import (
    GroupKey,
    StepPayloadsLost,
    StepReport,
    TrainingSample,
    TrainOrder,
    WeightManifest,
)
from safeladder.weight_payload import WeightPayload

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerStatus:
    """Where a rank stands."""

    rank: int
    version: int
    step: int
    pid: int


class Learner:
    """Rank ``rank`` of ``world_size``. Every method but ``rendezvous`` goes to all ranks, in one
    order; an exception on one rank ends the group, and the run restarts from a checkpoint."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        config: Config,
        store: PayloadStore,
        address: str = "127.0.0.1",
        sender: WeightSender | None = None,
    ) -> None:
        """``address``: of this machine, as the other ranks reach it; ``sender``: on the rank that
        publishes, if versions go from GPU to GPU."""
        require_trainable(config)
        self._address = address
        self._sender = sender
        self._rank, self._world_size = rank, world_size
        self._config, self._store = config, store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._step = self._version = 0
        self._fence = -1
        self._last_report: StepReport | None = None
        self._last_trained: list[tuple[GroupKey, int]] = []
        """Groups of the step that it reports, with their attempts."""
        self._publisher = Publisher(store, config.weights.chunk_bytes, delta=config.weights.delta)
        self._log: StepLog | None = None

    async def rendezvous(self) -> tuple[str, int]:
        """The address of this machine and a free port, for the process group of all ranks."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port: int = probe.getsockname()[1]
        return (self._address, port)

    async def start(
        self,
        master_address: str,
        master_port: int,
        model_path: Path,
        resume_from: Path | None = None,
    ) -> LearnerStatus:
        """Load the model, or the checkpoint ``resume_from`` (verified by the caller), and join the
        process group."""
        return await self._on_thread(
            lambda: self._start(master_address, master_port, model_path, resume_from)
        )

    async def train(self, order: TrainOrder) -> StepReport | StepPayloadsLost:
        """One optimizer step on the ordered groups; the batch is on disk before it starts.

        Every rank reads all payloads first, and the ranks then agree on what could not be read by
        one of them: if anything, the step is not taken on any rank and may be ordered anew. A
        repeated order answers with its first report. Raises ``FencedError`` for an order of an
        older driver, ``DivergedError``, ``ValueError`` for an order that does not follow, or that
        names other groups for a step which has been taken.
        """
        self._admit_fence(order.fence)
        if self._last_report is not None and order.step == self._step:
            if _groups_of(order) != self._last_trained:
                raise ValueError(f"step {order.step} was taken with other groups than ordered now")
            return self._last_report
        if order.step != self._step + 1:
            raise ValueError(f"step {order.step} was ordered after step {self._step}")
        read = await read_payloads(self._store, order.groups)
        lost = await self._on_thread(lambda: self._agree_on_lost([pair is None for pair in read]))
        if lost:
            groups = tuple((order.groups[i].key, order.groups[i].attempt) for i in lost)
            return StepPayloadsLost(step=order.step, groups=groups)
        payloads, references = zip(*(pair for pair in read if pair is not None), strict=True)
        samples = build_samples(order.groups, payloads, references)
        return await self._on_thread(lambda: self._train(order, samples))

    async def sft(self, rows: Sequence[SftRow], config: SftConfig) -> Mapping[str, float]:
        """The supervised rung, before the first RL step; the version stays what it was."""
        return await self._on_thread(
            lambda: train_supervised(
                self._engine,
                rows,
                config,
                budget=self._config.learner.micro_batch_tokens,
                seed=self._config.run.seed,
            )
        )

    async def begin_stage(self, rows: Sequence[Any], fence: int) -> Mapping[str, float]:
        """Take the rows of a stage other than RL, all of them, as ``stage_tasks`` wants them.

        Returns what is measured on the rows for validation as the policy is; empty if there are
        none. The stage goes on from the checkpoint that the rank was started with.
        """
        self._admit_fence(fence)
        return await self._on_thread(lambda: self._begin_stage(rows, fence))

    async def stage_step(self, step: int, fence: int) -> StepReport:
        """One optimizer step on the rows that follow. Raises ``FencedError``, ``DivergedError``,
        ``ValueError`` for a step that does not follow."""
        self._admit_fence(fence)
        return await self._on_thread(lambda: self._stage_step(step, fence))

    async def measure_stage(self) -> Mapping[str, float]:
        """Figures over the rows for validation; empty if there are none."""
        return await self._on_thread(self._stage.measure)

    async def publish(
        self, version: int, fence: int
    ) -> tuple[WeightManifest, WeightPayload] | None:
        """Gather the trained tensors; on rank 0 store them and return where they are, elsewhere
        None. The next step may be ordered at once: it begins when the copies are made."""
        self._admit_fence(fence)
        if version != self._version:
            raise ValueError(f"version {version} was asked for, the learner is at {self._version}")
        published = await self._publisher.publish(self._engine, self._thread, version, fence)
        if published is not None:
            await asyncio.to_thread(self._step_log(fence).published, published[0])
        return published

    async def send_weights(
        self,
        manifest: WeightManifest,
        payload: WeightPayload,
        engine: str,
        num_workers: int,
        control: Peer,
    ) -> None:
        """Send a published version to one engine, at its own request, while training goes on."""
        self._admit_fence(manifest.fence)
        if self._sender is None:
            raise ValueError("this rank sends no weights; see weights.transport")
        await self._sender.send(manifest, payload, engine, num_workers, control)

    async def save_checkpoint(
        self, parent: Path, step: int, fence: int, extra: Mapping[str, str] | None = None
    ) -> Path:
        """Write ``parent/step-N`` on rank 0 and return its path. Raises ``FencedError``,
        ``EnvironmentUnfitError`` on a full disk."""
        self._admit_fence(fence)
        return await self._on_thread(lambda: self._save(parent, step, fence, dict(extra or {})))

    async def close(self) -> None:
        """Leave the process group and end the thread."""
        if hasattr(self, "_engine"):
            await self._on_thread(self._engine.close)
        self._thread.shutdown()

    def _admit_fence(self, fence: int) -> None:
        if fence < self._fence:
            raise FencedError(f"fence {fence} is older than {self._fence}: a newer driver is here")
        self._fence = fence

    async def _on_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # On the torch thread

    def _start(
        self, master_address: str, master_port: int, model_path: Path, resume_from: Path | None
    ) -> LearnerStatus:
        place = Place(
            rank=self._rank,
            world_size=self._world_size,
            master_address=master_address,
            master_port=master_port,
        )
        self._model_path = model_path  # a checkpoint may be retired while the run goes on
        self._engine, manifest = start_engine(self._config, place, model_path, resume_from)
        if manifest is not None:
            self._step, self._version = manifest.step, manifest.version
        return LearnerStatus(
            rank=self._rank, version=self._version, step=self._step, pid=os.getpid()
        )

    def _agree_on_lost(self, is_lost: Sequence[bool]) -> list[int]:
        """Positions of the groups that at least one rank could not read. *Collective.*"""
        anywhere = self._engine.reduce({str(i): float(one) for i, one in enumerate(is_lost)}, "max")
        return [int(position) for position, one in anywhere.items() if one]

    def _train(self, order: TrainOrder, samples: Sequence[TrainingSample]) -> StepReport:
        began = time.monotonic()
        if self._rank == 0:
            refuse_lower_fence(self._config.run.directory / "checkpoints", order.fence)
            write_batch(self._config.run.directory / "batches", order, samples)
        metrics = update_policy(self._engine, samples, self._version, self._config)
        self._step = self._version = order.step
        if self._rank == 0:
            reached("optimizer.stepped", order.step)
        seconds = time.monotonic() - began
        metrics["trained_tokens_per_s"] = metrics["trained_tokens"] / seconds
        self._last_report = StepReport(
            step=self._step, version=self._version, metrics=metrics, seconds=seconds
        )
        self._last_trained = _groups_of(order)
        if self._rank == 0:
            self._step_log(order.fence).took(self._last_report, order.fence)
        self._last_report = self._with_rounding(self._last_report)
        return self._last_report

    def _with_rounding(self, report: StepReport) -> StepReport:
        """With adapters, how far their last merge was rounded: of the version before."""
        if self._config.learner.lora is None or self._config.model.dtype == "float32":
            return report
        return replace(
            report, metrics={**report.metrics, "lora_rounding": self._engine.merge_error}
        )

    def _begin_stage(self, rows: Sequence[Any], fence: int) -> Mapping[str, float]:
        config = self._config
        assert config.rows is not None, "the run has no stage that passes over rows"
        budget = config.learner.micro_batch_tokens
        task = build_task(self._engine, rows, config, fence, is_resumed=self._step > 0)
        plan = RowPlan(len(rows), config.rows, config.run.seed, config.run.steps)
        self._stage = StageTrainer(self._engine, task, plan, budget)
        return self._stage.measure() if self._step == 0 else {}

    def _stage_step(self, step: int, fence: int) -> StepReport:
        if step != self._step + 1:
            raise ValueError(f"step {step} was ordered after step {self._step}")
        began = time.monotonic()
        if self._rank == 0:
            refuse_lower_fence(self._config.run.directory / "checkpoints", fence)
        metrics = self._stage.step(step)
        self._step = self._version = step
        if self._rank == 0:
            reached("optimizer.stepped", step)
        seconds = time.monotonic() - began
        metrics["trained_tokens_per_s"] = metrics["trained_tokens"] / seconds
        report = StepReport(step=step, version=step, metrics=metrics, seconds=seconds)
        if self._rank == 0:
            self._step_log(fence).took(report, fence)
        return self._with_rounding(report)

    def _step_log(self, fence: int) -> StepLog:
        if self._log is None:
            self._log = StepLog(self._config.run.directory / STEPS, self._config, fence)
        return self._log

    def _save(self, parent: Path, step: int, fence: int, extra: Mapping[str, str]) -> Path:
        """*Collective.* Ranks other than 0 only take part in the gathering."""
        if step != self._step:  # asked here: steps that were ordered before it are taken by now
            raise ValueError(f"a checkpoint of step {step} was asked for at step {self._step}")
        if self._rank != 0:
            engine = self._engine
            for _ in (
                *engine.weights(only_trained=False),
                *engine.head_weights(),
                *engine.adapter_weights(),
                *engine.optimizer_state(),
            ):
                pass
            return parent / f"step-{self._step}"
        refuse_lower_fence(parent, fence)
        manifest = CheckpointManifest(
            step=self._step,
            version=self._version,
            fence=fence,
            num_updates=self._engine.num_updates,
            dtype=self._config.model.dtype,
            config_sha256=hashlib.sha256(self._config.model_dump_json().encode()).hexdigest(),
            extra=extra,
        )
        return commit_checkpoint(
            parent, manifest, self._write_files, keep=self._config.checkpoint.keep
        )

    def _write_files(self, folder: Path) -> dict[str, str]:
        engine, rng = self._engine, torch.get_rng_state()
        weights, head = engine.weight_slots(only_trained=False), engine.head_slots()
        adapters = engine.adapter_slots()
        return copy_model_files(self._model_path, folder, self._config.model.dtype) | {
            INDEX: write_index(folder, weights),
            WEIGHTS: _write_tensors(folder / WEIGHTS, weights, engine.weights(only_trained=False)),
            **(
                {VALUE_HEAD: _write_tensors(folder / VALUE_HEAD, head, engine.head_weights())}
                if head
                else {}
            ),
            **(
                {ADAPTER: _write_tensors(folder / ADAPTER, adapters, engine.adapter_weights())}
                if adapters
                else {}
            ),
            OPTIMIZER: _write_tensors(
                folder / OPTIMIZER, engine.optimizer_slots(), engine.optimizer_state()
            ),
            RNG: _write_tensors(
                folder / RNG,
                {"torch_cpu": Slot("uint8", tuple(rng.shape))},
                iter([("torch_cpu", rng)]),
            ),
        }


def _groups_of(order: TrainOrder) -> list[tuple[GroupKey, int]]:
    return [(group.key, group.attempt) for group in order.groups]


def _write_tensors(path: Path, slots: Mapping[str, Slot], tensors: NamedTensors) -> str:
    """Stream the tensors to a file; returns its SHA-256."""
    with SafetensorsStream(path, slots) as file:
        for name, tensor in tensors:
            assert tensor is not None, f"{name} was not gathered"
            file.write(name, raw_bytes(tensor))
    reached("checkpoint.file_written", path.name)
    return file.sha256
