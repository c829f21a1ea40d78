"""A reward file as OpenRLHF's examples write it."""

import torch


def reward_func(queries, prompts, labels, **kwargs):
    responses = [query[len(prompt) :] for query, prompt in zip(queries, prompts)]
    hits = [float(response == label) for response, label in zip(responses, labels)]
    reward = torch.tensor(hits)
    return {"rewards": reward * 2 - 1, "scores": reward, "extra_logs": {"hits": reward}}
