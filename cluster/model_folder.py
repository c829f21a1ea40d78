"""What a model folder holds, read from file headers alone: no model library is imported.

Owns the sentences about a missing, incomplete or cut model. It knows nothing of how it is loaded.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeladder.errors import EnvironmentUnfitError
from safeladder.paths import PathError, kind_of, read_bytes
from vision.family import FAMILIES

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
LAYER = re.compile(r"\.layers\.(\d+)\.")
MAX_HEADER_BYTES = 100 * 2**20
"""Limit of the safetensors format for the JSON header of one file."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model in Hugging Face layout: JSON configuration, safetensors weights, tokenizer."""

    path: Path
    num_parameters: int
    parameters_by_layer: tuple[int, ...]
    """Parameters of each decoder layer, first to last."""
    model_type: str | None = None
    """Name of the architecture."""
    max_positions: int | None = None
    """Longest sequence; None if the model does not say, or stretches its positions."""
    matrices: tuple[tuple[int, str, int, int], ...] = ()
    """Weights of linear layers of the decoder: layer, name such as ``q_proj``, outputs, inputs."""
    has_vision: bool = False
    """Whether its configuration has a vision part."""
    num_frozen: int = 0
    """Parameters of a vision tower: never trained, and on each rank of a learner whole."""

    def num_trainable(self, last_layers: int | None) -> int:
        """Parameters of the last k decoder layers, or for None of all but a vision tower."""
        if last_layers is None or not self.parameters_by_layer:
            return self.num_parameters - self.num_frozen
        return sum(self.parameters_by_layer[-last_layers:])

    def num_adapted(
        self, rank: int, target: Collection[str] | None, last_layers: int | None
    ) -> int:
        """Parameters of adapters of that rank on the layers that ``target`` names (None: all)."""
        first = len(self.parameters_by_layer) - (last_layers or len(self.parameters_by_layer))
        return sum(
            rank * (outputs + inputs)
            for layer, name, outputs, inputs in self.matrices
            if layer >= first and (target is None or name in target)
        )


def read_model_folder(path: Path) -> ModelFolder:
    """Check that a model is complete and count it.

    Raises ``EnvironmentUnfitError`` that names the file and the way out.
    """
    try:
        return _read_folder(path)
    except (OSError, PathError) as error:
        raise _unfit(
            path, f"cannot be read ({error}); correct model.path or the permissions"
        ) from None


def _read_folder(path: Path) -> ModelFolder:
    if kind_of(path) != "folder":
        raise _unfit(
            path, "there is no such folder; set model.path to a model in Hugging Face layout"
        )
    config = _read_json(path, "config.json")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise _unfit(path, f"holds no tokenizer ({', '.join(TOKENIZER_FILES)}); save it beside it")
    total, layers, matrices = 0, dict[int, int](), list[tuple[int, str, int, int]]()
    kind, frozen = _text(config.get("model_type")), 0
    for shard in _shards(path):
        for name, shape in _shapes(shard).items():
            total += math.prod(shape)
            if not set(name.split(".")).isdisjoint(FAMILIES.get(kind or "", ())):
                frozen += math.prod(shape)
            if match := LAYER.search(name):
                layer = int(match[1])
                layers[layer] = layers.get(layer, 0) + math.prod(shape)
                if len(shape) == 2 and name.endswith(".weight") and "vis" not in name:
                    matrices.append((layer, name.split(".")[-2], shape[0], shape[1]))
    if total == 0:
        raise _unfit(path, "the weight files hold no tensor; copy the model again")
    by_layer = tuple(layers[i] for i in sorted(layers))
    positions = _positions(config)
    has_vision = isinstance(config.get("vision_config"), dict)
    return ModelFolder(path, total, by_layer, kind, positions, tuple(matrices), has_vision, frozen)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _positions(config: dict[str, Any]) -> int | None:
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    for key in ("rope_scaling", "rope_parameters"):
        rope = text.get(key)
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) != "default":
            return None
    known = text.get("max_position_embeddings")
    return known if type(known) is int and known > 0 else None


def _shards(path: Path) -> list[Path]:
    if (path / "model.safetensors.index.json").is_file():
        index = _read_json(path, "model.safetensors.index.json")
        weight_map = index.get("weight_map")
        names = sorted(set(_names(weight_map))) if isinstance(weight_map, dict) else []
        if not names:
            raise _unfit(
                path, "model.safetensors.index.json names no weight files; copy the model again"
            )
    else:
        names = sorted(file.name for file in path.glob("*.safetensors"))
    if not names:
        has_pickle = any(path.glob("*.bin"))
        raise _unfit(
            path,
            "holds only pickled weights (*.bin); save it as safetensors"
            if has_pickle
            else "holds no weights (*.safetensors); copy or convert the model first",
        )
    for name in names:
        if not (path / name).is_file():
            raise _unfit(path, f"the weight file {name} is missing; copy the model again")
    return [path / name for name in names]


def _shapes(file: Path) -> dict[str, list[int]]:
    """Tensor name → shape of one safetensors file; refuses a file shorter than its header says."""
    cut = _unfit(file, "the file is cut off or damaged; copy the model again")
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise cut
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > MAX_HEADER_BYTES:
            raise cut
        try:
            header = json.loads(stream.read(header_bytes))
            header.pop("__metadata__", None)
            end = max((_size(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
            shapes = {name: list(map(_size, t["shape"])) for name, t in header.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise cut from None
    if file.stat().st_size != 8 + header_bytes + end:
        raise cut
    return shapes


def _size(value: Any) -> int:
    """A number of a header; raises ``ValueError`` for all else."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _names(weight_map: dict[str, Any]) -> Iterator[str]:
    return (name for name in weight_map.values() if isinstance(name, str) and name)


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(path / name))
    except FileNotFoundError:
        raise _unfit(path, f"holds no {name}; set model.path to a model folder") from None
    except (ValueError, RecursionError) as error:
        raise _unfit(path, f"{name} cannot be read ({error}); copy the model again") from None
    if not isinstance(value, dict):
        raise _unfit(path, f"{name} is no JSON object; copy the model again")
    return value


def _unfit(path: Path, sentence: str) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(f"model {path}: {sentence}")
