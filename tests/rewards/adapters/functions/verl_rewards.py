"""Custom reward functions as verl's documentation writes them."""

import math
import time


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if data_source != "openai/gsm8k":
        raise NotImplementedError(f"{data_source=}")
    return 1.0 if solution_str.endswith(ground_truth) else 0.0


def with_details(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    hit = ground_truth in solution_str
    return {"score": hit * kwargs.get("weight", 1.0), "acc": hit, "pred": solution_str}


async def compute_score_async(data_source, solution_str, ground_truth, extra_info=None):
    return float(extra_info["index"]) / 10


def as_told(data_source, solution_str, ground_truth, extra_info=None):
    """Does what the response says: for tests of failures."""
    if solution_str == "raise":
        raise KeyError("boxed")
    if solution_str == "hang":
        time.sleep(3600)
    return {
        "none": None,
        "nan": math.nan,
        "infinite": math.inf,
        "beyond": 1.0000001,
        "below": -0.5,
        "text": "1.0",
        "list": [1.0],
        "no score": {"acc": 1.0},
        "score none": {"score": None},
        "true": True,
        "one": 1,
        "half": 0.5,
    }[solution_str]


def breaks_late(data_source, solution_str, ground_truth, extra_info=None):
    return undefined_name  # noqa: F821
