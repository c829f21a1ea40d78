"""Reward functions as AReaL's documentation writes them."""

from dataclasses import dataclass, field


def gsm8k_reward_fn(prompt, completions, prompt_ids, completion_ids, answer, **kwargs):
    return int(completions.split()[-1] == answer)


@dataclass
class RewardResult:
    """The fields of ``areal.api.reward_api.RewardResult``."""

    final_reward: float
    step_rewards: list = field(default_factory=list)
    step_ends: list = field(default_factory=list)
    metadata: dict = field(default_factory=dict)


async def step_reward_fn(prompt, completions, prompt_ids, completion_ids, **kwargs):
    return RewardResult(0.5, step_rewards=[0.25, 0.25], step_ends=[3, 9])
