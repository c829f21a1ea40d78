"""A reward server as verifier: what the HTTP conventions share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from rewards.adapters.remote import RemoteOptions, RemoteRewards
from rewards.adapters.scores import Scale
from rewards.judging import Judgment, SampleVerifier
from safeladder.records import ScoreRequest


class RemoteVerifier(SampleVerifier):
    """Asks ``url`` once for each sample; several addresses take turns.

    ``low``, ``high`` and ``optional`` as for functions. What the server runs is not part of the
    version: change ``revision`` when it changes.
    """

    path: ClassVar[str] = ""

    def __init__(
        self,
        *,
        principle: str,
        url: str | list[str],
        low: float = 0.0,
        high: float = 1.0,
        optional: bool = False,
        revision: str = "",
        remote: RemoteOptions | None = None,
    ) -> None:
        self._set_up(principle, url, Scale(low, high, optional), remote, {"revision": revision})

    def _set_up(
        self,
        principle: str,
        url: str | list[str],
        scale: Scale,
        remote: RemoteOptions | None,
        more: dict[str, Any],
    ) -> None:
        super().__init__(principle, {"url": url, "scale": repr(scale), **more})
        self._scale = scale
        self.server = RemoteRewards(url, remote)

    async def start(self) -> None:
        """See that the server answers. Raises ``VerifierUnavailableError``."""
        await self.server.start()

    async def close(self) -> None:
        """Close the connections."""
        await self.server.close()

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        """Ask the server about one sample."""
        answer = await self.server.post(self.server.next_url(), self.body(request))
        return self._scale.judgment(self.pick(answer))

    @abstractmethod
    def body(self, request: ScoreRequest) -> dict[str, Any]:
        """The JSON body that is sent."""

    def pick(self, answer: Any) -> Any:
        """The number (or None) in the answer. Raises ``UnjudgedError``."""
        return answer
