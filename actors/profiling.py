"""An engine's own measurement of its speed: a few short batches of rising size, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

from safeladder.engine_profile import EngineProfile
from safeladder.ports import PromptTooLongError, RolloutEngine
from safeladder.records import Message, Prompt, Sampling

PROFILE_S = 4.0
"""Longest measurement."""
TOKENS = 16
"""Of each sequence."""
GROWTH = 4
"""From one batch to the next, up to ``max_sequences``."""

PROMPT = Prompt(id="profile", messages=(Message("user", "Count from one to ten."),), route="")


async def measured(
    engine: RolloutEngine, max_new_tokens: int, *, limit_s: float = PROFILE_S
) -> EngineProfile:
    """The engine's limits, and its speed at as many batch sizes as fit into ``limit_s``; at least
    one batch is tried. The very first tokens, which warm it up, do not count."""
    limits, speeds = engine.limits(), list[tuple[int, float]]()
    tokens = min(TOKENS, max_new_tokens)
    ends = time.monotonic() + limit_s
    with contextlib.suppress(TimeoutError, PromptTooLongError):
        async with asyncio.timeout(limit_s):
            await _run(engine, 1, min(2, tokens))
            size, seconds = 1, 0.0
            while time.monotonic() + seconds < ends:
                seconds, made = await _run(engine, size, tokens)
                speeds.append((size, made / seconds))
                if size == limits.max_sequences:
                    break
                size = min(GROWTH * size, limits.max_sequences)
    return replace(limits, speeds=tuple(speeds))


async def _run(engine: RolloutEngine, num_samples: int, tokens: int) -> tuple[float, int]:
    """(seconds, sampled tokens) of one batch."""
    sampling = Sampling(num_samples=num_samples, max_new_tokens=tokens, temperature=1.0, seed=0)
    started, made = time.monotonic(), 0
    stream = engine.generate(f"profile/{num_samples}", PROMPT, sampling)
    async with contextlib.aclosing(stream) as samples:  # type: ignore[type-var]
        async for sample in samples:
            made += sample.tokens.size
    return max(time.monotonic() - started, 1e-9), made
