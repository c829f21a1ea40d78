"""A run as the checks see it: a config, its rows, and a model of which only headers are real."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safeladder.config import Config
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

JUDGE = f"{__name__}:EqualsReference"


class EqualsReference:
    """A verifier: 1 if the response is the reference; fails on request."""

    name, version = "tests:EqualsReference", "1"

    def __init__(self, *, principle: str, broken: bool = False) -> None:
        self._principle = principle
        self._broken = broken

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        return [self._verdict(request) for request in requests]

    def _verdict(self, request: ScoreRequest) -> Verdict:
        fields: dict[str, Any] = {
            "sample_id": request.sample_id,
            "principle": self._principle,
            "verifier": self.name,
            "verifier_version": self.version,
        }
        if self._broken:
            return Verdict(
                **fields, status=VerdictStatus.INVALID, cause=InvalidCause.ERROR, evidence="boom"
            )
        score = float(request.response == request.reference)
        return Verdict(**fields, status=VerdictStatus.OK, score=score)


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (rows, columns) in shapes.items():
        size = 4 * rows * columns
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def save_headers(folder: Path) -> Path:
    """A model of three layers that nobody can load: files and headers, as checks read them."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 2048}')
    (folder / "tokenizer.json").write_text("{}")
    shapes = {"model.embed_tokens.weight": [10, 4]}
    shapes |= {f"model.layers.{i}.mlp.weight": [4, 4] for i in range(3)}
    write_safetensors(folder / "model.safetensors", shapes)
    return folder


def build(tmp_path: Path, **changes: Any) -> Config:
    data = tmp_path / "train.jsonl"
    if not data.exists():
        rows = [
            {"id": f"{route}{i}", "prompt": "q", "route": route, "reference": str(i)}
            for route in ("safety", "task")
            for i in range(4)
        ]
        data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    tree: dict[str, Any] = {
        "run": {"name": "demo", "steps": 3, "root": str(tmp_path / "runs")},
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "data": {"train": [str(data)]},
        "principles": {"exact": {"verifier": JUDGE}},
        "routes": {"safety": {"exact": 1.0}, "task": {"exact": 1.0}},
    }
    for dotted, value in changes.items():
        section, _, key = dotted.partition("__")
        tree.setdefault(section, {})[key] = value
    return Config.model_validate(tree)
