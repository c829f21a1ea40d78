"""The child process of ``MathAnswer``: one JSON line in, one JSON line out, forever.

Runs as a script, so that it needs nothing but math-verify. It dies with its parent and holds at
most ``MEMORY_BYTES``. It knows no deadline: whoever started it kills it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import sys
from typing import Any

MEMORY_BYTES = 2 * 2**30
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Announce readiness, then answer jobs until the input ends."""
    _die_with(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not end up between the replies
    logging.disable(logging.CRITICAL)
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        _send(replies, {"error": f"math-verify does not load: {error}"})
        return
    _send(replies, {"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        try:
            reply = _judge(job["reference"], job["answer"])
        except MemoryError:
            _send(replies, {"error": "out of memory"})
            return  # what is left of the heap is not trusted with another job
        except Exception as error:  # noqa: BLE001 - the decision: a failed job is INVALID there
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        _send(replies, reply)


def _judge(reference: str, answer: str) -> dict[str, Any]:
    """``{"correct", "read"}``, or ``{"error"}`` for a reference that is no mathematics."""
    from math_verify import verify

    boxed = "\\boxed" in reference or "$" in reference
    gold = _parse(reference if boxed else f"\\boxed{{{reference}}}") or _parse(reference)
    if not gold:
        return {"error": f"reference {reference!r} cannot be read as mathematics"}
    found = _parse(answer)
    if not found:
        return {"correct": False, "read": None}
    correct = verify(gold, found, timeout_seconds=None, raise_on_error=True)
    return {"correct": bool(correct), "read": str(found[-1])[:200]}


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    config = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    parsed: list[Any] = parse(
        text, extraction_config=config, parsing_timeout=None, raise_on_error=True
    )
    return parsed


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)


def _send(stream: Any, reply: dict[str, Any]) -> None:
    stream.write(json.dumps(reply) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
