"""One bounded POST to a reward server: JSON out, JSON in, every failure with its cause.

No redirect is followed (it would send prompts to an address that no configuration names), and an
answer is read only up to a limit. Repeating is the caller's decision.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from rewards.endpoint import is_busy, read_bounded, resolve_secret
from rewards.judging import UnjudgedError
from safeladder.config_section import PositiveFloat, Section
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause

if TYPE_CHECKING:
    import httpx


class RemoteOptions(Section):
    """How a reward server is asked."""

    timeout_s: PositiveFloat = 30.0
    """A request that takes longer is INVALID(timeout)."""
    max_concurrency: PositiveInt = 16
    """Requests under way at the same time."""
    max_answer_bytes: PositiveInt = 2**20
    """A longer answer is INVALID(malformed)."""
    api_key: str | None = None
    """``env:NAME`` of a bearer token."""


class RemoteRewards:
    """One or more addresses of the same service, asked in turn."""

    def __init__(self, urls: str | Sequence[str], options: RemoteOptions | None) -> None:
        self.urls = [urls] if isinstance(urls, str) else list(urls)
        self.options = options or RemoteOptions()
        if not self.urls:
            raise ValueError("url: give at least one address")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        self._slots = asyncio.Semaphore(self.options.max_concurrency)
        self._client: httpx.AsyncClient | None = None
        self._turn = 0

    async def start(self) -> None:
        """Open the pool and see that each address answers anything at all.

        Raises ``VerifierUnavailableError``, or ``ConfigError`` for the key.
        """
        import httpx

        self._client = self.new_client()
        for url in self.urls:
            try:
                async with self._client.stream("GET", url):
                    pass
            except httpx.HTTPError as error:
                await self.close()
                detail = str(error) or type(error).__name__
                raise VerifierUnavailableError(
                    f"reward server {url} does not answer ({detail}); start it or correct the url"
                ) from error

    async def close(self) -> None:
        """Close the pool."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def next_url(self) -> str:
        """Round robin."""
        self._turn += 1
        return self.urls[self._turn % len(self.urls)]

    def new_client(self) -> httpx.AsyncClient:
        """A client with a cookie jar of its own, for services that keep sessions."""
        import httpx

        key = resolve_secret(self.options.api_key)
        headers = {"Accept-Encoding": "identity"}
        headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(
            headers=headers, timeout=self.options.timeout_s, follow_redirects=False
        )

    async def post(
        self, url: str, body: Mapping[str, Any], client: httpx.AsyncClient | None = None
    ) -> Any:
        """The JSON answer. Raises ``UnjudgedError``."""
        import httpx

        client = client or self._client
        if client is None:
            raise VerifierUnavailableError(f"reward server {url} is not started")
        async with self._slots:
            try:
                async with (
                    asyncio.timeout(self.options.timeout_s),
                    client.stream("POST", url, json=dict(body)) as answer,
                ):
                    data = await read_bounded(answer, self.options.max_answer_bytes)
            except (TimeoutError, httpx.TimeoutException):
                detail = f"no answer within {self.options.timeout_s:g} s"
                raise UnjudgedError(InvalidCause.TIMEOUT, detail, retryable=True) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                detail = f"{type(error).__name__}: {error}"
                raise UnjudgedError(InvalidCause.UNAVAILABLE, detail, retryable=True) from error
        return _parse(answer.status_code, data)


def _parse(status: int, data: bytes) -> Any:
    shown = data[:200].decode(errors="replace")
    if is_busy(status):
        detail = f"HTTP {status}: {shown}"
        raise UnjudgedError(InvalidCause.UNAVAILABLE, detail, retryable=True)
    if 300 <= status < 400:
        raise UnjudgedError(InvalidCause.ERROR, f"HTTP {status}: redirects are not followed")
    if status != 200:
        raise UnjudgedError(InvalidCause.ERROR, f"HTTP {status}: {shown}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise UnjudgedError(InvalidCause.MALFORMED, f"no JSON: {shown}") from None
