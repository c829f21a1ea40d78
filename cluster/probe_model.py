"""The model that a probe asks: its engine, what identifies it, and what its template adds.

A probe needs no run: the engine stands in this process, behind the port that fleets use, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.roles import build_engine
from safeladder.config import ModelConfig, RolloutConfig, VllmConfig
from safeladder.errors import ConfigError, EnvironmentUnfitError, RunFailedError, SafeladderError
from safeladder.paths import PathError, read_bytes
from safeladder.ports import RolloutEngine
from safeladder.records import Message

TAIL_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeModel:
    """The options that say which model is asked, and how."""

    path: Path
    engine: Literal["vllm", "transformers"] = "vllm"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    chat_template: Path | None = None
    max_prompt_tokens: int = 2048
    max_new_tokens: int = 512
    max_num_seqs: int = 64
    tensor_parallel_size: int = 1
    cpu_kv_cache_gib: float = 1.0
    threads: int = 1

    @property
    def model(self) -> ModelConfig:
        """Without a system prompt. Raises ``ConfigError`` for a template that cannot be read."""
        template = None
        if self.chat_template is not None:
            try:
                template = read_bytes(self.chat_template).decode()
            except (FileNotFoundError, PathError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"--chat-template {self.chat_template} cannot be read: {error}"
                ) from None
        return ModelConfig(path=self.path, dtype=self.dtype, chat_template=template)

    def settings(self) -> dict[str, Any]:
        """What the answers depend on, as JSON values."""
        model = self.model
        template = model.chat_template
        return {
            "model": str(self.path),
            "weights": fingerprint(self.path),
            "engine": self.engine,
            "dtype": self.dtype,
            "chat_template": template and hashlib.sha256(template.encode()).hexdigest(),
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_new_tokens": self.max_new_tokens,
        }

    def template_adds(self) -> str:
        """What the chat template says before the first turn of a user and of no other: a system
        prompt of its own, for most that do. Empty if it says nothing."""
        from actors.local_model import require_folder
        from actors.rendering import PromptRenderer

        require_folder(self.path)
        turns = (Message("user", "QUESTION"), Message("assistant", "ANSWER"))
        try:
            renderer = PromptRenderer.from_config(self.model)
        except (OSError, ValueError) as error:
            told = str(error).partition("\n")[0].rstrip(": ")
            raise EnvironmentUnfitError(
                f"model {self.path}: its tokenizer cannot be read ({told}); give the folder of a "
                "model in Hugging Face layout"
            ) from error
        text = renderer.decode(renderer.render_messages((*turns, turns[0])))
        before, between, *_ = text.split("QUESTION")
        usual = between.partition("ANSWER")[2].strip()
        return before.strip().removesuffix(usual).strip()


@asynccontextmanager
async def started_engine(options: ProbeModel) -> AsyncIterator[RolloutEngine]:
    """The engine of a model, closed in the end. Raises ``EnvironmentUnfitError`` if it does not
    start, ``RunFailedError`` if it breaks while it is used."""
    from actors.local_model import require_folder
    from actors.rollout import EngineFailedError

    require_folder(options.path)
    rollout = RolloutConfig(
        engine=options.engine,
        max_prompt_tokens=options.max_prompt_tokens,
        max_new_tokens=options.max_new_tokens,
        vllm=VllmConfig(
            max_num_seqs=options.max_num_seqs,
            tensor_parallel_size=options.tensor_parallel_size,
            cpu_kv_cache_gib=options.cpu_kv_cache_gib,
        ),
    )
    engine = build_engine(options.model, rollout, seed=0)
    try:
        try:
            await engine.start()
        except SafeladderError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise EnvironmentUnfitError(
                f"the engine ({options.engine}) does not start: {error}"
            ) from error
        try:
            yield engine
        except EngineFailedError as error:
            raise RunFailedError(
                f"the engine broke: {error}; the same command goes on from what was answered", 1
            ) from error
    finally:
        await engine.close()


def fingerprint(folder: Path) -> str:
    """Hex digest that tells the weights in a folder from others: its config, and the name, size and
    end of each safetensors file. Raises ``EnvironmentUnfitError`` if they cannot be read."""
    digest = hashlib.sha256()
    try:
        digest.update(read_bytes(folder / "config.json"))
        for path in sorted(folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                file.seek(max(0, size - TAIL_BYTES))
                digest.update(file.read())
    except (OSError, PathError) as error:
        raise EnvironmentUnfitError(f"model {folder} cannot be read: {error}") from None
    return digest.hexdigest()[:16]


def as_json(value: Any) -> tuple[str, ...]:
    """A report as the text of a file."""
    return json.dumps(value, indent=2, ensure_ascii=False), "\n"
