"""How each project calls a reward function, and what comes back as plain JSON. Child side only.

Standard library only; what a function itself imports (torch, numpy) is recognized by its methods.
A job is what the parent's adapter of the same convention has written.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from types import SimpleNamespace
from typing import Any

Job = dict[str, Any]
Arguments = tuple[list[Any], dict[str, Any]]
RewardFunction = Callable[..., Any]

MAX_DEPTH = 8
_ARRAYS = frozenset({"numpy", "torch", "jax", "jaxlib"})


class UnusableError(Exception):
    """The function returned something that is no reward in any convention."""


def call_function(convention: str, function: RewardFunction, job: Job) -> Any:
    """Call as the convention does, await if needed, and reduce the result to JSON values.

    Raises ``UnusableError``, and whatever the function raises.
    """
    positional, named = _SHAPES[convention](function, job)
    value = function(*positional, **named)
    if inspect.isawaitable(value):
        value = asyncio.run(_result_of(value))
    return plain(value)


def plain(value: Any, depth: int = 0) -> Any:
    """Numbers, text, lists and mappings as themselves; arrays and tensors as lists.

    Subclasses are read through the base class, so that an overridden conversion is never asked.

    >>> plain({"score": True, "parts": (1, 2.5)})
    {'score': True, 'parts': [1, 2.5]}
    """
    if depth > MAX_DEPTH:
        raise UnusableError(f"returned something nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return value
    for base in (int, float, str):
        if isinstance(value, base):
            return value if type(value) is base else _AS_BASE[base](value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if type(value).__module__.partition(".")[0] in _ARRAYS and hasattr(value, "tolist"):
        return plain(value.tolist(), depth + 1)
    if hasattr(value, "final_reward"):  # AReaL's RewardResult
        return {"final_reward": plain(value.final_reward, depth + 1)}
    raise UnusableError(f"returned {type(value).__name__}, which is no reward")


async def _result_of(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


_AS_BASE: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
}


def _trl(function: RewardFunction, job: Job) -> Arguments:
    named = job | {
        "trainer_state": SimpleNamespace(global_step=0, epoch=0.0),
        "log_extra": _ignore,
        "log_metric": _ignore,
        "environments": None,
    }
    return [], _accepted(function, named)


def _by_keyword(function: RewardFunction, job: Job) -> Arguments:
    return [], job


def _openrlhf(function: RewardFunction, job: Job) -> Arguments:
    return [job["queries"], job["prompts"], job["labels"]], {}


class SlimeStatus(Enum):
    """``Sample.Status`` of slime, as far as a finished sample can have it."""

    COMPLETED = "completed"
    TRUNCATED = "truncated"


def _slime(function: RewardFunction, job: Job) -> Arguments:
    return [SimpleNamespace(**job["args"]), _slime_sample(job["sample"])], {}


def _slime_group(function: RewardFunction, job: Job) -> Arguments:
    samples = [_slime_sample(sample) for sample in job["samples"]]
    return [SimpleNamespace(**job["args"]), samples], {}


def _slime_sample(fields: Job) -> SimpleNamespace:
    return SimpleNamespace(
        **fields | {"status": SlimeStatus(fields["status"]), "Status": SlimeStatus}
    )


def _areal(function: RewardFunction, job: Job) -> Arguments:
    return [job["prompt"], job["completions"], None, None], _accepted(function, job["row"])


def _verifiers_v1(function: RewardFunction, job: Job) -> Arguments:
    task = SimpleNamespace(**job["task"])
    messages = [SimpleNamespace(**message) for message in job["messages"]]
    trace = SimpleNamespace(
        **job["trace"],
        task=SimpleNamespace(data=task, type="Task", key=None, hash=None),
        messages=messages,
        assistant_messages=messages[-1:],
        tool_messages=[],
        last_message=messages[-1],
    )
    return [], _accepted(function, {"task": task, "trace": trace}, even_if_any=True)


def _accepted(
    function: RewardFunction, named: Mapping[str, Any], even_if_any: bool = False
) -> dict[str, Any]:
    """What the signature names; all of it if there is a ``**kwargs``, unless ``even_if_any``."""
    parameters = inspect.signature(function).parameters
    if not even_if_any and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(named)
    return {name: value for name, value in named.items() if name in parameters}


def _ignore(*_: object, **__: object) -> None:
    return None


_SHAPES: dict[str, Callable[[RewardFunction, Job], Arguments]] = {
    "trl": _trl,
    "verl": _by_keyword,
    "openrlhf": _openrlhf,
    "slime": _slime,
    "slime_group": _slime_group,
    "areal": _areal,
    "verifiers_v1": _verifiers_v1,
}
