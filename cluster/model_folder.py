"""What a model folder holds, read from file headers alone: no model library is imported.

Owns the sentences about a missing, incomplete or cut model. It knows nothing of how it is loaded.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeladder.errors import EnvironmentUnfitError

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

    def num_trainable(self, last_layers: int | None) -> int:
        """Parameters of the last k decoder layers, or of the whole model for None."""
        if last_layers is None or not self.parameters_by_layer:
            return self.num_parameters
        return sum(self.parameters_by_layer[-last_layers:])


def read_model_folder(path: Path) -> ModelFolder:
    """Check that a model is complete and count it.

    Raises ``EnvironmentUnfitError`` that names the file and the way out.
    """
    if not path.is_dir():
        raise _unfit(
            path, "there is no such folder; set model.path to a model in Hugging Face layout"
        )
    _read_json(path, "config.json")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise _unfit(path, f"holds no tokenizer ({', '.join(TOKENIZER_FILES)}); save it beside it")
    total, layers = 0, dict[int, int]()
    for shard in _shards(path):
        for name, shape in _shapes(shard).items():
            total += math.prod(shape)
            if match := LAYER.search(name):
                layer = int(match[1])
                layers[layer] = layers.get(layer, 0) + math.prod(shape)
    return ModelFolder(path, total, tuple(layers[i] for i in sorted(layers)))


def _shards(path: Path) -> list[Path]:
    if (path / "model.safetensors.index.json").is_file():
        index = _read_json(path, "model.safetensors.index.json")
        names = sorted(set(index.get("weight_map", {}).values()))
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
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            shapes = {name: tensor["shape"] for name, tensor in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise cut from None
    if file.stat().st_size != 8 + header_bytes + end:
        raise cut
    return shapes


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _unfit(path, f"holds no {name}; set model.path to a model folder") from None
    except (OSError, ValueError) as error:
        raise _unfit(path, f"{name} cannot be read ({error}); copy the model again") from None
    if not isinstance(value, dict):
        raise _unfit(path, f"{name} is no JSON object; copy the model again")
    return value


def _unfit(path: Path, sentence: str) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(f"model {path}: {sentence}")
