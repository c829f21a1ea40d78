"""Runs a verifier once, from configuration to verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.building import build_verifier
from rewards.deadline import score_with_deadline
from safeladder.config import PrincipleConfig
from safeladder.records import ScoreRequest, Verdict

FUNCTIONS = Path(__file__).with_name("functions")


def built(cls: str, function: str, **options: Any) -> Any:
    """A verifier of ``rewards.adapters`` around a function of the ``functions`` folder."""
    config = PrincipleConfig(
        verifier=f"rewards.adapters.{cls}",
        options={"function": str(FUNCTIONS / function), **options},
    )
    return build_verifier("rule", config)


async def scored(verifier: Any, requests: Sequence[ScoreRequest]) -> list[Verdict]:
    """Start, score, close."""
    try:
        await verifier.start()
        return await score_with_deadline(verifier, requests, 60, principle="rule")
    finally:
        await verifier.close()


def verdicts(verifier: Any, *requests: ScoreRequest) -> list[Verdict]:
    return asyncio.run(scored(verifier, requests))
