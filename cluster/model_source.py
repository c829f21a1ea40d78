"""Where a job finds a language model: behind an OpenAI-compatible endpoint, or in its own process.

What a config says of it, and the backend that this makes. Knows nothing of what is asked.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rewards.building import check_options, load_object
from rewards.completers import Backend, Local
from rewards.endpoint import Endpoint
from safeladder.config_section import PositiveFloat, PositiveInt, Section


class ModelSource(Section):
    """A chat model that is asked greedily."""

    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server."""
    model: str | None = None
    """The name the server knows the model by."""
    api_key: str | None = None
    """``env:NAME``: the variable that holds the key."""
    completer: str | None = None
    """``module:Class`` of a model in this process, such as
    ``actors.vllm_completer:VllmCompleter``."""
    completer_options: dict[str, Any] = Field(default={})
    """Its keyword arguments, such as ``path``."""
    timeout_s: PositiveFloat = 300.0
    """Of a call; one that takes longer has failed."""
    max_concurrency: PositiveInt = 16
    """Calls under way at an endpoint."""
    batch_size: PositiveInt = 32
    """Conversations of one call of a completer."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if (self.endpoint is None) == (self.completer is None):
            raise ValueError("give either `endpoint` with `model`, or `completer`")
        if self.endpoint is not None and self.model is None:
            raise ValueError("`endpoint` needs `model`, the name the server knows it by")
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"`endpoint` must begin with http:// or https://: {self.endpoint!r}")
        if self.api_key is not None and not self.api_key.startswith("env:"):
            raise ValueError("`api_key` must be of the form `env:NAME`: no key stands in a config")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """All that a greedy reply depends on, as far as the config knows."""
        if self.endpoint is not None:
            return {"endpoint": self.endpoint, "model": self.model}
        return {"completer": self.completer, "options": self.completer_options}

    def backend(self, key: str) -> Backend:
        """The backend, not started. Raises ``ConfigError``, which names ``key``."""
        if self.endpoint is not None and self.model is not None:
            return Endpoint(
                self.endpoint, self.model, self.api_key, self.timeout_s, self.max_concurrency
            )
        assert self.completer is not None
        cls = load_object(self.completer, f"{key}.completer")
        options = check_options(cls, self.completer_options, f"{key}.completer_options")
        return Local(cls, options, self.timeout_s, self.batch_size)


class JudgeSource(ModelSource):
    """A model that is asked for one of three labels."""

    mode: Literal["reply", "logits"] = "reply"
    """``reply`` reads what it writes; ``logits`` takes the likeliest label, which gives small
    models a say that cannot keep to a form."""
