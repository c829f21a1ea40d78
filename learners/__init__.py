"""Numbers in, weights out: advantages, objectives, packing, the DeepSpeed engine, checkpoints."""
