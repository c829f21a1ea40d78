"""The only door to DeepSpeed: one rank's share of a policy and of its AdamW state, ZeRO 0-3.

Owns the process group, gradient accumulation, the optimizer step and the gathering of whole
tensors. Gradients are sums over ranks and micro-batches: whoever computes the loss brings the
global weights. Knows no objective and no file. Methods marked *collective* must run on all ranks
in the same order.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from learners.lora import Exported, exported
from learners.packing import PackedRow
from learners.policy_model import PackedPolicy
from learners.safetensors_stream import Slot
from safeladder.errors import DivergedError

logger = logging.getLogger(__name__)

EXTENSIONS_DIR = Path(__file__).resolve().parent.parent / "build" / "torch_extensions"
MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET_ELEMENTS = 50_000_000
"""Elements that one reduction or all-gather of ZeRO moves at a time."""

NamedTensors = Iterator[tuple[str, Tensor | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine needs to know of the run."""

    zero_stage: Literal[0, 1, 2, 3]
    betas: tuple[float, float]
    weight_decay: float
    max_grad_norm: float
    timeout_s: float
    """Longest wait of a collective operation for the other ranks."""
    head_lr_scale: float = 1.0
    """Learning rate of a value head over that of the policy."""


def extensions_dir() -> Path:
    """Where compiled operators live: ``TORCH_EXTENSIONS_DIR``, else a folder of this project."""
    return Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(EXTENSIONS_DIR)))


def clear_stale_locks(folder: Path) -> None:
    """Remove the lock files of builds that were killed: the next build would wait on them for
    ever. Only for set-up, while no other build runs."""
    for lock in folder.glob("*/lock"):
        logger.warning("removing %s, left by a build that did not finish", lock)
        lock.unlink()


def build_cpu_op() -> None:
    """Compile (or load) the shared-memory operator that DeepSpeed wants for CPU collectives, after
    clearing stale locks. Does nothing beside a GPU."""
    clear_stale_locks(extensions_dir())
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() == "cpu":
        get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)


class DeepspeedEngine:
    """One rank. ``rank`` 0 of ``world_size`` listens on ``master_address:master_port``."""

    def __init__(
        self,
        policy: PackedPolicy,
        settings: EngineSettings,
        *,
        rank: int,
        world_size: int,
        master_address: str,
        master_port: int,
    ) -> None:
        """*Collective.* Joins the process group and shards the policy; AdamW starts at zero."""
        import deepspeed

        # Only tensor-parallel inference calls this operator. It takes minutes to compile where it
        # is missing, and each start would leave 66 MiB of it in /dev/shm for good.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        cuda = torch.cuda.is_available()
        local = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "LOCAL_SIZE": world_size,
                 "MASTER_ADDR": master_address, "MASTER_PORT": master_port}  # fmt: skip
        os.environ.update({key: str(value) for key, value in local.items()})
        deepspeed.init_distributed(
            dist_backend="nccl" if cuda else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=settings.timeout_s),
            init_method=f"tcp://{master_address}:{master_port}",
            rank=rank,
            world_size=world_size,
        )
        self._deepspeed = deepspeed
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else "cpu"
        self._policy = policy
        self._settings = settings
        self.merge_error = 0.0
        """How far rounding moved an element at most when adapters were merged last."""
        self._has_adapters = any(
            one.adapter for one in exported(policy.named_weights(), policy.model)
        )
        self._trained = {n: p for n, p in policy.named_weights() if p.requires_grad}
        head = policy.value_head
        self._head = {f"value_head.{n}": p for n, p in head.named_parameters()} if head else {}
        self._updated = self._trained | self._head
        self._dtype = next(iter(self._trained.values())).dtype
        groups: list[dict[str, Any]] = [{"params": list(self._trained.values())}]
        if self._head:
            scale = settings.head_lr_scale
            groups.append({"params": list(self._head.values()), "lr_scale": scale})
        # lr is set at each step, so the optimizer is born with 0. Fused: one pass over the memory.
        self._adam = torch.optim.AdamW(
            groups,
            lr=0.0,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=policy, optimizer=self._adam, config=self._deepspeed_config()
        )
        if policy.vision is not None:
            policy.vision.to(self.device)
        self._is_plain = self._optimizer is self._adam
        if self._is_plain and world_size == 1:
            # It would copy all gradients into one buffer, reduce that over one rank and copy back.
            self._engine.enable_backward_allreduce = False
        self.reset_optimizer()

    def _deepspeed_config(self) -> dict[str, Any]:
        trained = sum(math.prod(_shape(p)) for p in self._trained.values())
        bucket = min(trained, BUCKET_ELEMENTS)
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self._settings.max_grad_norm,
            "steps_per_print": 2**31,
            "zero_optimization": {
                "stage": self._settings.zero_stage,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                "overlap_comm": False,
            },
        }
        if self._dtype == torch.bfloat16:
            # A non-finite gradient must be seen, not skipped.
            config["bf16"] = {"enabled": True, "check_grad_overflow": False}
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        return config

    # Forward, backward, step

    def logprobs(self, row: PackedRow) -> Tensor:
        """[N] log-probs of the row's targets. *Collective* under ZeRO-3."""
        found = self._forward(row)
        return found[0] if self._head else found

    def logprobs_and_values(self, row: PackedRow) -> tuple[Tensor, Tensor]:
        """[N] log-probs of the row's targets, and [N] values of the states before them; the policy
        must have a value head. *Collective* under ZeRO-3."""
        logprobs, values = self._forward(row)
        return logprobs, values

    def values(self, row: PackedRow) -> Tensor:
        """[N, K] outputs of a value model's heads at the wanted states. *Collective* under
        ZeRO-3."""
        return self._forward(row)

    def _forward(self, row: PackedRow) -> Tensor:
        result: Tensor = self._engine(**self._policy.inputs(row, self.device))
        return result

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this micro-batch; ``last`` closes the step's sum. *Collective.*"""
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over ranks; our weights are global, so the sum is wanted.
        self._engine.backward(loss * self.world_size)

    def step(self, lr: float) -> float:
        """Clip, apply AdamW, forget the gradient; returns the norm before clipping. *Collective.*

        Raises ``DivergedError`` on every rank if the norm is not finite; the weights are then spent
        and must not be published.
        """
        for group in self._adam.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        plain_norm = self._plain_norm() if self._is_plain else None
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm() if plain_norm is None else plain_norm)
        if getattr(self._optimizer, "overflow", False) or not math.isfinite(norm):
            raise DivergedError(f"the gradient norm is {norm}: training has diverged")
        return norm

    def _plain_norm(self) -> Tensor:
        """Stage 0 clips without telling the norm."""
        gradients = [p.grad for p in self._updated.values() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def reduce(self, values: Mapping[str, float], how: Literal["sum", "max"]) -> dict[str, float]:
        """The same keys on every rank, summed or maximized over the ranks. *Collective.*"""
        packed = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        operation = (
            torch.distributed.ReduceOp.SUM if how == "sum" else torch.distributed.ReduceOp.MAX
        )
        torch.distributed.all_reduce(packed, operation)
        return dict(zip(values, packed.tolist(), strict=True))

    # Whole tensors

    def weight_slots(self, *, only_trained: bool) -> dict[str, Slot]:
        """Name, dtype and shape of what ``weights`` yields."""
        return {one.name: _slot(one.weight) for one in self._weights(only_trained)}

    def weights(self, *, only_trained: bool) -> NamedTensors:
        """Whole tensors one by one, copied to the CPU, adapters merged into them; None on ranks
        other than 0. *Collective.*"""
        self.merge_error = 0.0
        return self._whole(self._weights(only_trained))

    def adapter_slots(self) -> dict[str, Slot]:
        """Name, dtype and shape of what ``adapter_weights`` yields; empty without adapters."""
        return {n: _slot(p) for n, p in self._trained.items()} if self._has_adapters else {}

    def adapter_weights(self) -> NamedTensors:
        """The adapters as they are trained. *Collective.*"""
        return self._whole(Exported(n, self._trained[n]) for n in self.adapter_slots())

    def head_slots(self) -> dict[str, Slot]:
        """Name, dtype and shape of what ``head_weights`` yields; empty without a value head."""
        return {_own_name(n): _slot(p) for n, p in self._head.items()}

    def head_weights(self) -> NamedTensors:
        """The value head as ``weights`` gives the policy, which is all that is published.
        *Collective.*"""
        return self._whole(Exported(_own_name(n), p) for n, p in self._head.items())

    def _whole(self, weights: Iterable[Exported]) -> NamedTensors:
        for one in weights:
            whole = None
            with contextlib.ExitStack() as gathered:
                # One by one: of several at once DeepSpeed waits for the last alone, which on gloo
                # says nothing of the others.
                for part in one.parts:
                    if hasattr(part, "ds_id"):
                        gathered.enter_context(self._deepspeed.zero.GatheredParameters([part]))
                if self.rank == 0 and one.adapter is not None:
                    whole, error = one.adapter.merged(one.weight)
                    self.merge_error = max(self.merge_error, error)
                elif self.rank == 0:
                    whole = one.weight.detach().to("cpu", copy=True)
            yield one.name, whole

    def _weights(self, only_trained: bool) -> Iterable[Exported]:
        weights = exported(self._policy.named_weights(), self._policy.model)
        return (w for w in weights if not only_trained or w.weight.requires_grad or w.adapter)

    def optimizer_slots(self) -> dict[str, Slot]:
        """Name, dtype and shape of what ``optimizer_state`` yields."""
        return {
            f"{name}.{kind}": Slot("float32", _shape(p))
            for name, p in self._updated.items()
            for kind in self._kinds()
        }

    def optimizer_state(self) -> NamedTensors:
        """fp32 moments, and masters if the weights are not fp32 themselves, one by one, on the CPU;
        None on ranks other than 0. *Collective.*"""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, param in self._updated.items():
            for kind in self._kinds():
                if self._is_plain:
                    whole = self._adam.state[param][kind]
                elif kind == "master":
                    whole = safe_get_full_fp32_param(param)
                else:
                    whole = safe_get_full_optimizer_state(param, kind)
                yield f"{name}.{kind}", whole.cpu().clone() if self.rank == 0 else None

    def load_optimizer(self, state: Mapping[str, Tensor], num_updates: int) -> None:
        """Take the state that ``optimizer_state`` gave, on any number of ranks."""
        for name, param in self._updated.items():
            for kind in self._kinds():
                self._set_state(param, kind, state[f"{name}.{kind}"].to(self.device))
        self._set_num_updates(num_updates)

    def _set_state(self, param: Any, kind: str, value: Tensor) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if self._is_plain:
            self._adam.state[param][kind].copy_(value)
        elif hasattr(param, "ds_id"):
            # The full-tensor setter of stage 3 fails where a shard ends in padding.
            size = param.ds_tensor.numel()
            padded = torch.nn.functional.pad(
                value.flatten(), (0, size * self.world_size - value.numel())
            )
            own = padded[self.rank * size : (self.rank + 1) * size]
            if kind == "master":
                safe_set_local_fp32_param(param, own)
            else:
                safe_set_local_optimizer_state(param, own, kind)
        elif kind == "master":
            safe_set_full_fp32_param(param, value)
        else:
            safe_set_full_optimizer_state(param, value, kind)

    def _kinds(self) -> tuple[str, ...]:
        return MOMENTS if self._dtype == torch.float32 else ("master", *MOMENTS)

    # AdamW's own counters

    @property
    def num_updates(self) -> int:
        """Updates since the optimizer was reset (AdamW's bias correction)."""
        return int(next(iter(self._adam.state.values()))["step"])

    def _set_num_updates(self, value: int) -> None:
        for state in self._adam.state.values():
            state["step"].fill_(value)

    def reset_optimizer(self) -> None:
        """Zero moments and update count, as before the first step.

        torch would make them at the first step; they are made here, because DeepSpeed's setters
        need them on resume.
        """
        if not self._adam.state:
            for shard in self._fp32_shards():
                moments = {kind: torch.zeros_like(shard) for kind in MOMENTS}
                step = torch.zeros((), dtype=torch.float32, device=shard.device)
                self._adam.state[shard] = {"step": step, **moments}
            if self._settings.zero_stage in (1, 2):
                self._optimizer._lazy_init_hp_params_optimizer_state()
        for state in self._adam.state.values():
            for kind in MOMENTS:
                state[kind].zero_()
        self._set_num_updates(0)

    def _fp32_shards(self) -> list[Tensor]:
        """What AdamW updates on this rank; DeepSpeed has no public name for it."""
        if self._is_plain:
            return list(self._updated.values())
        if self._settings.zero_stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return list(self._optimizer.single_partition_of_fp32_groups)

    def close(self) -> None:
        """Leave the process group."""
        self._engine.destroy()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _own_name(name: str) -> str:
    return name.removeprefix("value_head.")


def _shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(getattr(weight, "ds_shape", weight.shape))


def _slot(weight: Tensor) -> Slot:
    return Slot(str(weight.dtype).removeprefix("torch."), _shape(weight))
