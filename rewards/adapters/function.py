"""A reward function as verifier: what all conventions share.

Owns the options, the version and the child processes. A convention's class says how a sample
becomes a job (``shapes`` turns it into a call) and where in the answer the number is.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from rewards.adapters.location import locate, require_name
from rewards.adapters.sandbox import FunctionError, Sandbox, SandboxOptions, choose_mode
from rewards.adapters.scores import Scale, one_each
from rewards.judging import Judgment, SampleVerifier, UnjudgedError
from safeladder.errors import ConfigError
from safeladder.paths import read_bytes
from safeladder.records import ScoreRequest, Verdict

REFERENCE_COLUMNS = ("reference", "ground_truth", "answer")
"""Names under which a function may look for the gold answer: loading takes it from one of them."""


class FunctionVerifier(SampleVerifier):
    """Runs ``function`` (``package.module:name`` or ``folder/file.py:name``) once for each sample.

    ``low`` and ``high`` are the ends of what it returns, rescaled to [0, 1]; anything beyond is
    INVALID(out_of_range). None is INVALID(abstain), or NOT_APPLICABLE if it is ``optional``.
    The version ends in the sandbox's mode and covers the file of the function, not what that file
    imports.
    """

    convention: ClassVar[str]

    def __init__(
        self,
        *,
        principle: str,
        function: str,
        low: float = 0.0,
        high: float = 1.0,
        optional: bool = False,
        sandbox: SandboxOptions | None = None,
    ) -> None:
        self._set_up(principle, function, Scale(low, high, optional), sandbox, {})

    def _set_up(
        self,
        principle: str,
        function: str,
        scale: Scale,
        sandbox: SandboxOptions | None,
        more: dict[str, Any],
    ) -> None:
        options = sandbox or SandboxOptions()
        self._where = f"principles.{principle}.options.function"
        try:
            file, path = locate(function)
            source = read_bytes(file)
            require_name(file, source, function.rpartition(":")[2])
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"{self._where}: {error}") from error
        digest = hashlib.sha256(source).hexdigest()
        mode = choose_mode(options.mode)
        super().__init__(
            principle,
            {
                **{"function": function, "code": digest, "scale": repr(scale)},
                **options.model_dump(exclude={"workers", "start_timeout_s"}),
                **more,
            },
        )
        self._version += f"/{mode}"
        self._scale = scale
        count = range(options.workers)
        self.sandboxes = [Sandbox(path, self.convention, options, mode) for _ in count]
        self._idle: asyncio.Queue[Sandbox] = asyncio.Queue()
        for box in self.sandboxes:
            self._idle.put_nowait(box)

    async def start(self) -> None:
        """Import the function in each child.

        Raises ``ConfigError`` for a function that cannot be imported, ``VerifierUnavailableError``
        for a child that does not come up.
        """
        try:
            await asyncio.gather(*(box.start() for box in self.sandboxes))
        except FunctionError as error:
            raise ConfigError(f"{self._where}: {error}") from error

    async def close(self) -> None:
        """End all children."""
        await asyncio.gather(*(box.close() for box in self.sandboxes))

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        """Call the function with one sample."""
        return self._scale.judgment(self.pick(await self._ask(self.job(request))))

    @abstractmethod
    def job(self, request: ScoreRequest) -> dict[str, Any]:
        """JSON values from which ``shapes`` makes the call's arguments."""

    def pick(self, answer: Any) -> Any:
        """The number (or None) in the answer. Raises ``UnjudgedError``."""
        return answer

    async def _ask(self, job: dict[str, Any]) -> Any:
        box = await self._idle.get()
        try:
            return await box.call(job)
        finally:
            self._idle.put_nowait(box)


class GroupFunctionVerifier(FunctionVerifier):
    """Runs ``function`` once for all samples of a request; it returns one value for each.

    A call that fails, or returns another number of values, is INVALID for every sample of it.
    """

    @abstractmethod
    def group_job(self, requests: Sequence[ScoreRequest]) -> dict[str, Any]:
        """JSON values from which ``shapes`` makes the arguments of one call."""

    def job(self, request: ScoreRequest) -> dict[str, Any]:
        """The job of a group of one."""
        return self.group_job([request])

    def pick(self, answer: Any) -> Any:
        """The value of a group of one."""
        return self.pick_one(one_each(answer, 1)[0])

    def pick_one(self, value: Any) -> Any:
        """The number (or None) in one sample's value."""
        return value

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """One verdict for each request, in order, from one call."""
        asking = asyncio.ensure_future(self._values(requests))

        async def judgment(position: int) -> Judgment:
            values = await asyncio.shield(asking)
            return self._scale.judgment(self.pick_one(values[position]))

        parts: list[Coroutine[Any, Any, Verdict]]
        parts = [self.settle(request, judgment(k)) for k, request in enumerate(requests)]
        try:
            return list(await asyncio.gather(*parts))
        finally:
            asking.cancel()

    async def _values(self, requests: Sequence[ScoreRequest]) -> list[Any]:
        if not requests:
            return []
        try:
            return one_each(await self._ask(self.group_job(requests)), len(requests))
        except UnjudgedError as error:
            detail = f"the call with all {len(requests)} samples: {error}"
            raise UnjudgedError(error.cause, detail, retryable=error.retryable) from error


def prompt_text(request: ScoreRequest) -> str:
    """The conversation's contents, one after another: no chat template is known here."""
    return "\n\n".join(message.content for message in request.messages)


def columns(request: ScoreRequest) -> dict[str, Any]:
    """The row's columns, with the reference under the names that it may have had."""
    gold = {} if request.reference is None else dict.fromkeys(REFERENCE_COLUMNS, request.reference)
    return gold | dict(request.meta)
