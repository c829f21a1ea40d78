"""A reward file without torch: lists instead of tensors."""


def reward_func(queries, prompts, labels):
    scores = [1.0 if query.endswith(label) else 0.0 for query, label in zip(queries, labels)]
    return {"rewards": scores, "scores": scores, "extra_logs": {}}


def no_rewards(queries, prompts, labels):
    return {"scores": [1.0]}
