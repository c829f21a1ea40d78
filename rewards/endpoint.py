"""A judge's model behind an OpenAI-compatible endpoint.

Owns HTTP: deadlines, bounded concurrency, images as data URLs, and the translation of every
answer that is not one into a cause. It does not know what is asked.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rewards.images import MAX_IMAGE_BYTES, data_url
from rewards.judging import UnjudgedError
from safeladder.errors import ConfigError, VerifierUnavailableError
from safeladder.records import InvalidCause, Message

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES = 2**20
"""A longer answer is INVALID(malformed)."""
TOP_LOGPROBS = 20
"""The most that the interface gives."""
_ENV = "env:"


def resolve_secret(reference: str | None) -> str | None:
    """Value of ``env:NAME``. Raises ``ConfigError``: a key is never written into a config file."""
    if reference is None:
        return None
    if not reference.startswith(_ENV):
        raise ConfigError("api_key must be of the form `env:NAME`; keep the key out of the config")
    name = reference.removeprefix(_ENV)
    value = os.environ.get(name)
    if not value:
        raise ConfigError(f"api_key: the environment variable {name} is not set")
    return value


def is_busy(status: int) -> bool:
    """Whether asking again later may help."""
    return status >= 500 or status in {408, 425, 429}


async def read_bounded(answer: httpx.Response, max_bytes: int) -> bytes:
    """The body of a streamed answer. Raises ``UnjudgedError`` (malformed) above ``max_bytes``."""
    data = b""
    async for chunk in answer.aiter_raw():  # unpacked, a small answer could be a huge one
        data += chunk
        if len(data) > max_bytes:
            detail = f"the answer is longer than {max_bytes} bytes"
            raise UnjudgedError(InvalidCause.MALFORMED, detail)
    return data


class _Reply(NamedTuple):
    status: int
    data: bytes

    @property
    def shown(self) -> str:
        """Its beginning, for people."""
        return self.data[:200].decode(errors="replace")


class Endpoint:
    """``completers.Backend`` over HTTP: chat completions, greedy, at most ``max_concurrency`` at a
    time. Images of more than ``max_image_bytes`` are not sent."""

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None,
        timeout_s: float,
        max_concurrency: int,
        max_image_bytes: int = MAX_IMAGE_BYTES,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint must begin with http:// or https://, got {url!r}")
        if api_key is not None and not api_key.startswith(_ENV):
            raise ValueError("api_key must be of the form `env:NAME`")
        self._url = url.rstrip("/")
        self._model = model
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._max_image_bytes = max_image_bytes
        self._slots = asyncio.Semaphore(max_concurrency)
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Open the connection pool and see that the server answers at all."""
        import httpx

        key = resolve_secret(self._api_key)
        headers = {"Accept-Encoding": "identity"}
        headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.AsyncClient(headers=headers, timeout=self._timeout_s)
        try:
            async with self._client.stream("GET", f"{self._url}/models") as answer:
                pass
        except httpx.HTTPError as error:
            await self.close()
            raise VerifierUnavailableError(
                f"endpoint {self._url} does not answer ({error}); start it or correct the address"
            ) from error
        if answer.status_code in (401, 403):
            await self.close()
            raise ConfigError(f"endpoint {self._url} refuses the api_key ({answer.status_code})")

    async def reply(
        self, messages: Sequence[Message], max_tokens: int, images: Sequence[bytes] = ()
    ) -> str:
        """Ask once; repeating is the caller's decision."""
        answer = await self._ask(messages, images, max_tokens=max_tokens)
        return _content(answer)

    async def label_logprobs(
        self, messages: Sequence[Message], labels: Sequence[str], images: Sequence[bytes] = ()
    ) -> list[float]:
        """Log-prob of each label as the reply's first token, read from the server's list of likely
        first tokens; spellings that differ in blanks and case count together.

        Raises ``UnjudgedError`` (malformed) if a label is not on that list: it is then of several
        tokens, or too unlikely, and what is not known has no log-prob.
        """
        limits = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        tokens = _first_tokens(await self._ask(messages, images, **limits))
        found = []
        for label in labels:
            same = [p for token, p in tokens if token.strip().casefold() == label.casefold()]
            if not same:
                detail = f"no log-prob of {label!r} among {[token for token, _ in tokens]}"
                raise UnjudgedError(InvalidCause.MALFORMED, detail)
            found.append(math.log(math.fsum(math.exp(p) for p in same)))
        return found

    async def close(self) -> None:
        """Close the connection pool."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _ask(
        self, messages: Sequence[Message], images: Sequence[bytes], **limits: Any
    ) -> _Reply:
        import httpx

        if self._client is None:
            raise VerifierUnavailableError(f"endpoint {self._url} is not started")
        body = {
            "model": self._model,
            "messages": _with_images(
                messages, [data_url(i, self._max_image_bytes) for i in images]
            ),
            "temperature": 0,
            **limits,
        }
        async with self._slots:
            try:
                async with (
                    asyncio.timeout(self._timeout_s),
                    self._client.stream("POST", f"{self._url}/chat/completions", json=body) as got,
                ):
                    return _Reply(got.status_code, await read_bounded(got, MAX_ANSWER_BYTES))
            except (TimeoutError, httpx.TimeoutException):
                detail = f"no reply within {self._timeout_s:g} s"
                raise UnjudgedError(InvalidCause.TIMEOUT, detail, retryable=True) from None
            except httpx.HTTPError as error:
                detail = f"{type(error).__name__}: {error}"
                raise UnjudgedError(InvalidCause.UNAVAILABLE, detail, retryable=True) from error


def _with_images(messages: Sequence[Message], urls: Sequence[str]) -> list[dict[str, Any]]:
    """The conversation, images in front of the text of its last turn."""
    turns: list[dict[str, Any]] = [message._asdict() for message in messages]
    if urls:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url}} for url in urls
        ]
        turns[-1]["content"] = [*parts, {"type": "text", "text": turns[-1]["content"]}]
    return turns


def _choice(answer: _Reply) -> Mapping[str, Any]:
    """The first choice of a chat completion. Raises ``UnjudgedError`` for anything else."""
    status = answer.status
    if is_busy(status):
        raise UnjudgedError(InvalidCause.UNAVAILABLE, f"HTTP {status}", retryable=True)
    if status != 200:
        raise UnjudgedError(InvalidCause.ERROR, f"HTTP {status}: {answer.shown}")
    try:
        choice: Mapping[str, Any] = json.loads(answer.data)["choices"][0]
    except (ValueError, LookupError, TypeError, RecursionError):
        choice = {}
    return choice


def _content(answer: _Reply) -> str:
    try:
        content = _choice(answer)["message"]["content"]
    except (LookupError, TypeError):
        content = None
    if not isinstance(content, str):
        raise UnjudgedError(InvalidCause.MALFORMED, f"no chat completion: {answer.shown}")
    return content


def _first_tokens(answer: _Reply) -> list[tuple[str, float]]:
    """Likely first tokens of the reply, each with its log-prob."""
    choice = _choice(answer)
    try:
        likely = choice["logprobs"]["content"][0]["top_logprobs"]
        tokens = [(str(entry["token"]), float(entry["logprob"])) for entry in likely]
    except (LookupError, TypeError, ValueError):
        tokens = []
    tokens = [(token, logprob) for token, logprob in tokens if -math.inf < logprob <= 0]
    if not tokens:
        raise UnjudgedError(
            InvalidCause.MALFORMED, f"the server gives no log-probs: {answer.shown}"
        )
    return tokens
