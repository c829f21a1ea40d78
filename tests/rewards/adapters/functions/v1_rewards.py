"""Plugged rewards as the documentation of verifiers v1 writes them, filled by name."""


def reward(weight=1.0, priority=0):
    """Marks as ``vf.reward`` does."""

    def mark(function):
        function.reward, function._vf_weight, function.reward_priority = True, weight, priority
        return function

    return mark


@reward(weight=2.0)
async def exact_match(task, trace) -> float:
    return float(trace.last_reply == task.answer)


def short_enough(trace) -> float:
    assert trace.task.data.prompt.endswith("?")
    assert [message.role for message in trace.messages][-1] == "assistant"
    return 1.0 if trace.num_turns == 1 and not trace.is_truncated else 0.0


async def keyed(trace) -> dict:
    return {"format": 1.0, "content": 0.25}


async def one_key(trace) -> dict:
    return {"content": None}


async def needs_runtime(trace, runtime) -> float:
    return float((await runtime.run(["true"])).exit_code == 0)
