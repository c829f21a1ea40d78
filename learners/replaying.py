"""One rank that takes stored steps again. The numbers come from the code that trains; nothing is
written, and nothing is known of what they are compared with."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from transformers.utils.logging import disable_progress_bar

from learners.engine_start import Place, start_engine
from learners.policy_update import update_policy
from learners.publication import raw_bytes
from safeladder.config import Config
from safeladder.records import TensorSpec, TrainingSample, WeightManifest
from safeladder.tensors import checksum


class Replayer:
    """The policy at one version after another. Use it in a ``with`` block."""

    def __init__(self, config: Config, model_path: Path, checkpoint: Path | None) -> None:
        """Start from a checkpoint (verified by the caller), or from the model."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self._config = config
        disable_progress_bar()
        # DeepSpeed logs to the stdout that it finds; ours is for results.
        with contextlib.redirect_stdout(sys.stderr):
            self._engine, _ = start_engine(config, Place(master_port=port), model_path, checkpoint)

    def __enter__(self) -> Replayer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._engine.close()

    def take(self, samples: Sequence[TrainingSample], step: int) -> Mapping[str, float]:
        """Train the batch of a step; the metrics as ``update_policy`` gives them."""
        return update_policy(self._engine, samples, step - 1, self._config)

    def digest(self, version: int) -> str:
        """``WeightManifest.digest`` of the weights as they are, were they published."""
        slots = self._engine.weight_slots(only_trained=True)
        specs = []
        for name, tensor in self._engine.weights(only_trained=True):
            assert tensor is not None, f"{name} was not gathered"
            slot = slots[name]
            specs.append(
                TensorSpec(
                    name=name,
                    dtype=slot.dtype,
                    shape=slot.shape,
                    checksum=checksum(raw_bytes(tensor)),
                )
            )
        return WeightManifest(version=version, fence=0, tensors=tuple(specs)).digest
