"""Verifiers with the mistakes that a first verifier has; loaded by name."""

from __future__ import annotations

import sys
from typing import Any

from rewards.judging import Judgment, RuleVerifier
from safeladder.records import ScoreRequest


class Good(RuleVerifier):
    """What the others are made of."""

    def __init__(self, *, principle: str) -> None:
        super().__init__(principle, {})

    def judge(self, request: ScoreRequest) -> Judgment:
        return Judgment(1.0)


class RaisesInInit(Good):
    def __init__(self, *, principle: str) -> None:
        raise RuntimeError("boom")


class LooksUpInInit(Good):
    def __init__(self, *, principle: str) -> None:
        self.value = {}["x"]  # type: ignore[var-annotated]


class ExitsInInit(Good):
    def __init__(self, *, principle: str) -> None:
        sys.exit(0)


class Abstract(RuleVerifier):
    def __init__(self, *, principle: str) -> None:
        super().__init__(principle, {})


class NoPrinciple(Good):
    def __init__(self) -> None:
        super().__init__(principle="x")


class Positional(Good):
    def __init__(self, principle: str, /, weight: int = 1) -> None:
        super().__init__(principle=principle)


class BadHint(Good):
    def __init__(self, *, principle: str, weight: Nowhere = 1) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__(principle=principle)


class Unchecked:
    """Not a type that options can be checked against."""


class OddHint(Good):
    def __init__(self, *, principle: str, weight: Unchecked) -> None:
        super().__init__(principle=principle)


class ForgotSuper(Good):
    def __init__(self, *, principle: str) -> None: ...


class BadVersion(Good):
    @property
    def version(self) -> str:
        raise RuntimeError("no git")


class NumberVersion(Good):
    version = 3  # type: ignore[assignment]


class BadStart(Good):
    async def start(self) -> None:
        raise OSError("no lexicon")


class ExitsInStart(Good):
    async def start(self) -> None:
        sys.exit(0)


class BadClose(Good):
    async def close(self) -> None:
        raise RuntimeError("was never open")


class Returns(Good):
    """Returns something else than a judgment."""

    def __init__(self, value: Any) -> None:
        super().__init__(principle="p")
        self.value = value

    def judge(self, request: ScoreRequest) -> Judgment:
        return self.value  # type: ignore[no-any-return]
