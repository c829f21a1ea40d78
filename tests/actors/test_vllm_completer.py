"""The completer on vLLM says and prices what the plain one does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.completer import TransformersCompleter
from actors.vllm_completer import VllmCompleter
from rewards.judging import UnjudgedError
from safeladder.records import InvalidCause, Message

CONVERSATIONS = [
    (Message("user", "hi"),),
    (Message("system", "be brief"), Message("user", "a longer question")),
]
LONG = (Message("user", "x" * 240),)  # 256 tokens would do for it, but not for what follows
LABELS = ["safe with warning", "b", "unsafe"]


@pytest.mark.engine
def test_both_completers_give_the_same_replies_and_log_probs(model_path: Path) -> None:
    async def ask(completer: Any, *more: Any) -> tuple[list[Any], list[Any]]:
        try:
            return (
                await completer.complete([*more, *CONVERSATIONS], 10),
                await completer.label_logprobs([*more, *CONVERSATIONS], LABELS),
            )
        finally:
            await completer.close()

    async def work() -> None:
        plain = await ask(TransformersCompleter(model_path))
        fast = await ask(
            VllmCompleter(
                model_path, "float32", max_model_tokens=256, max_num_seqs=4, cpu_kv_cache_gib=0.25
            ),
            LONG,
        )
        for found in fast:
            failure = found.pop(0)
            assert isinstance(failure, UnjudgedError)
            assert (failure.cause, failure.retryable) == (InvalidCause.ABSTAIN, False)
        assert fast[0] == plain[0]
        for mine, reference in zip(fast[1], plain[1], strict=True):
            assert mine == pytest.approx(reference, abs=1e-3)

    asyncio.run(work())
