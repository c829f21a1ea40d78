"""TRL's side of ``benchmarks.versus_trl``: a program for TRL's own environment, without a line of
this project.

    build/peers/trl/bin/python benchmarks/trl_peer.py spec.json

The spec is JSON: ``model``, ``prompts`` (rendered texts), ``group_size``, ``groups_per_step``,
``max_new_tokens``, ``temperature``, ``epsilon``, ``lr``, ``train_last_layers`` or null, ``steps``,
``threads``, ``output``. Prints one JSON object: seconds and completion tokens of each step.

GRPOTrainer as its documentation has it, but float32 (as we; these processors have no fast half
precision), without gradient checkpointing (which saves memory and costs time) and with the whole
batch in one forward pass. Generation is transformers' own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """Train; what each step took."""
    import torch

    torch.set_num_threads(spec["threads"])
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    if spec["train_last_layers"] is not None:
        decoder = model.get_decoder()
        model.requires_grad_(False)
        decoder.layers[-spec["train_last_layers"] :].requires_grad_(True)
        decoder.norm.requires_grad_(True)
    ends: list[float] = []
    tokens: list[int] = []
    prompt_tokens: list[int] = []

    def stops(completion_ids: list[list[int]], prompts: list[str], **_: Any) -> list[float]:
        tokens.append(sum(len(ids) for ids in completion_ids))
        prompt_tokens.append(sum(len(tokenizer(p).input_ids) for p in prompts) // len(prompts))
        return [float(ids[-1] == tokenizer.eos_token_id) for ids in completion_ids]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    batch = spec["group_size"] * spec["groups_per_step"]
    config = GRPOConfig(
        output_dir=spec["output"],
        max_steps=spec["steps"],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        num_generations=spec["group_size"],
        max_completion_length=spec["max_new_tokens"],
        temperature=spec["temperature"],
        epsilon=spec["epsilon"],
        learning_rate=spec["lr"],
        lr_scheduler_type="constant",
        beta=0.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1000,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=stops,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": spec["prompts"]}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    began = time.perf_counter()
    trainer.train()
    seconds = [end - start for start, end in zip([began, *ends], ends, strict=False)]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "prompt_tokens": sum(prompt_tokens) / len(prompt_tokens),
        "trained_parameters": trained,
        "cores": len(os.sched_getaffinity(0)),
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
