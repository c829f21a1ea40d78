"""Reward functions as TRL's documentation writes them."""

import asyncio


def reward_words(completions, **kwargs):
    """Conversational data: each completion is a list with one message."""
    return [len(completion[0]["content"].split()) / 10 for completion in completions]


def reward_exact(
    prompts, completions, ground_truth, log_extra, log_metric, trainer_state, **kwargs
):
    contents = [completion[0]["content"] for completion in completions]
    scores = [1.0 if text == truth else 0.0 for text, truth in zip(contents, ground_truth)]
    log_extra("asked", [prompt[-1]["content"] for prompt in prompts])
    log_metric("accuracy", sum(scores) / len(scores))
    assert trainer_state.global_step >= 0
    return scores


async def reward_async(prompts, completions, completion_ids, **kwargs):
    await asyncio.sleep(0)
    return [0.5 for _ in completions]


def reward_math_only(prompts, completions, task, **kwargs):
    """None for rows of another task."""
    return [1.0 if kind == "math" else None for kind in task]


def reward_no_columns(completions):
    return [1.0] * len(completions)


def reward_token_lengths(completion_ids, **kwargs):
    return [len(ids) / 100 for ids in completion_ids]


def reward_too_few(completions, **kwargs):
    return [1.0]


def reward_not_a_list(completions, **kwargs):
    return sum(1.0 for _ in completions)


def reward_numpy(completions, **kwargs):
    import numpy as np

    return np.array([0.25 for _ in completions], dtype=np.float32)
