"""Where a judge's model runs: behind an OpenAI-compatible endpoint, or in this process.

Owns deadlines, bounded concurrency, batching and the translation of failures into causes. It does
not know what is asked.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rewards.judging import UnjudgedError
from safeladder.errors import ConfigError, VerifierUnavailableError
from safeladder.records import InvalidCause, Message

if TYPE_CHECKING:
    import httpx

_ENV = "env:"
_BUSY = frozenset({408, 425, 429})
_LOAD_S = 600.0
"""Longest wait for a model to load."""
_WARM_UP = (Message("user", "Say yes."),)


class Completer(Protocol):
    """A model in this process, greedy. It may load in its constructor or with the first call."""

    async def complete(self, messages: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        """One reply for each conversation, in order, of at most ``max_tokens`` tokens."""
        ...

    async def close(self) -> None:
        """Unload."""
        ...


class Backend(Protocol):
    """What a judge asks."""

    async def start(self) -> None:
        """Get ready. Raises ``VerifierUnavailableError`` or ``ConfigError``."""
        ...

    async def reply(self, messages: Sequence[Message], max_tokens: int) -> str:
        """The model's reply. Raises ``UnjudgedError``."""
        ...

    async def close(self) -> None:
        """Free what ``start`` took."""
        ...


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


class Endpoint:
    """Chat completions over HTTP, greedy, at most ``max_concurrency`` at a time."""

    def __init__(
        self, url: str, model: str, api_key: str | None, timeout_s: float, max_concurrency: int
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint must begin with http:// or https://, got {url!r}")
        if api_key is not None and not api_key.startswith(_ENV):
            raise ValueError("api_key must be of the form `env:NAME`")
        self._url = url.rstrip("/")
        self._model = model
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(max_concurrency)
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Open the connection pool and see that the server answers at all."""
        import httpx

        key = resolve_secret(self._api_key)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.AsyncClient(headers=headers, timeout=self._timeout_s)
        try:
            answer = await self._client.get(f"{self._url}/models")
        except httpx.HTTPError as error:
            await self.close()
            raise VerifierUnavailableError(
                f"endpoint {self._url} does not answer ({error}); start it or correct the address"
            ) from error
        if answer.status_code in (401, 403):
            await self.close()
            raise ConfigError(f"endpoint {self._url} refuses the api_key ({answer.status_code})")

    async def reply(self, messages: Sequence[Message], max_tokens: int) -> str:
        """Ask once; repeating is the caller's decision."""
        import httpx

        if self._client is None:
            raise VerifierUnavailableError(f"endpoint {self._url} is not started")
        body = {
            "model": self._model,
            "messages": [message._asdict() for message in messages],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        async with self._slots:
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await self._client.post(f"{self._url}/chat/completions", json=body)
            except (TimeoutError, httpx.TimeoutException):
                detail = f"no reply within {self._timeout_s:g} s"
                raise UnjudgedError(InvalidCause.TIMEOUT, detail, retryable=True) from None
            except httpx.HTTPError as error:
                detail = f"{type(error).__name__}: {error}"
                raise UnjudgedError(InvalidCause.UNAVAILABLE, detail, retryable=True) from error
        return _content(answer)

    async def close(self) -> None:
        """Close the connection pool."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class Local:
    """A completer in this process; questions that wait together are answered in one batch."""

    def __init__(
        self,
        make: Callable[..., Completer],
        options: Mapping[str, Any],
        timeout_s: float,
        batch_size: int,
    ) -> None:
        self._make = make
        self._options = dict(options)
        self._timeout_s = timeout_s
        self._batch_size = batch_size
        self._completer: Completer | None = None
        self._waiting: list[tuple[Sequence[Message], int, asyncio.Future[str]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Construct the completer (in a thread) and have it say one word, so that whatever is
        wrong with the model shows now. Raises ``VerifierUnavailableError``."""
        try:
            async with asyncio.timeout(_LOAD_S):
                completer = await asyncio.to_thread(self._make, **self._options)
                await completer.complete([_WARM_UP], 1)
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            raise VerifierUnavailableError(f"the completer does not start: {detail}") from error
        self._completer = completer

    async def reply(self, messages: Sequence[Message], max_tokens: int) -> str:
        """Wait for the batch that this question becomes part of."""
        if self._completer is None:
            raise VerifierUnavailableError("the completer is not started")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((messages, max_tokens, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(self._completer))
        return await answer

    async def close(self) -> None:
        """Unload the completer; who still waits gets no reply."""
        completer, self._completer = self._completer, None
        if self._worker is not None:
            self._worker.cancel()
        for _, _, answer in self._waiting:
            answer.cancel()
        self._waiting.clear()
        if completer is not None:
            await completer.close()

    async def _work(self, completer: Completer) -> None:
        await asyncio.sleep(0)  # let questions of the same moment join the first batch
        while self._waiting:
            batch = [w for w in self._waiting[: self._batch_size] if not w[2].done()]
            del self._waiting[: self._batch_size]
            if not batch:
                continue
            try:
                await self._answer(completer, batch)
            finally:
                for _, _, answer in batch:
                    answer.cancel()

    async def _answer(
        self,
        completer: Completer,
        batch: Sequence[tuple[Sequence[Message], int, asyncio.Future[str]]],
    ) -> None:
        failure: UnjudgedError | None = None
        replies: list[str] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                limit = max(tokens for _, tokens, _ in batch)
                replies = await completer.complete([m for m, _, _ in batch], limit)
            if len(replies) != len(batch):
                detail = f"{len(replies)} replies to {len(batch)} questions"
                failure = UnjudgedError(InvalidCause.MALFORMED, detail)
        except TimeoutError:
            detail = f"no reply within {self._timeout_s:g} s"
            failure = UnjudgedError(InvalidCause.TIMEOUT, detail, retryable=True)
        except Exception as error:  # noqa: BLE001 - the decision: each sample of it is INVALID
            failure = UnjudgedError(InvalidCause.ERROR, f"{type(error).__name__}: {error}")
        for position, (_, _, answer) in enumerate(batch):
            if answer.done():
                continue
            if failure is None:
                answer.set_result(replies[position])
            else:
                answer.set_exception(failure)


def _content(answer: httpx.Response) -> str:
    """The text of a chat completion. Raises ``UnjudgedError`` for anything else."""
    status = answer.status_code
    if status >= 500 or status in _BUSY:
        raise UnjudgedError(InvalidCause.UNAVAILABLE, f"HTTP {status}", retryable=True)
    if status != 200:
        raise UnjudgedError(InvalidCause.ERROR, f"HTTP {status}: {answer.text[:200]}")
    try:
        content = answer.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content = None
    if not isinstance(content, str):
        raise UnjudgedError(InvalidCause.MALFORMED, f"no chat completion: {answer.text[:200]}")
    return content
