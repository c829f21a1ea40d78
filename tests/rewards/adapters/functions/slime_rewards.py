"""Custom reward models as slime's and miles' documentation writes them."""

import asyncio


async def custom_rm(args, sample, **kwargs):
    await asyncio.sleep(0)
    if sample.status == sample.Status.TRUNCATED:
        return 0.0
    return float(sample.response.strip() == sample.label) * sample.metadata.get("weight", 1.0)


async def custom_rm_dict(args, sample, **kwargs):
    return {args.reward_key: 0.75, "length": sample.response_length}


async def batched_custom_rm(args, samples, **kwargs):
    longest = max(len(sample.response) for sample in samples)
    return [len(sample.response) / longest for sample in samples]


async def unknown_attribute(args, sample, **kwargs):
    return float(args.n_samples_per_prompt)
