"""Completion tokens trained per second: our asynchronous run beside TRL's GRPOTrainer.

Same checkpoint, prompts, group size, length limit, temperature, clip, learning rate and trained
parameters, float32, two cores each, one after the other: ours has vLLM and the DeepSpeed learner
pinned to a core each (``configs/benchmarks/versus_trl.yaml``), TRL has both in turn with two
threads. TRL generates with transformers: its vLLM modes are made for GPUs. It has an environment of
its own, which ``make bench-peers`` creates. Two models: a small random one, and SmolLM2-135M.

Figure: tokens/s in steady state, ours over TRL's, the first steps left out on both sides. Every
sampled token is trained on both sides. The exit code is 0 only if the bars hold for both models.
``--short`` takes the small model and few steps, and says little.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cluster.history import read_history
from cluster.placement import prepare_ray
from demo.convert_smollm2 import convert
from safeladder.config import Config
from safeladder.config_loading import load_config

BARS = {"small": 2.0, "smollm2-135m": 1.5}
CONFIG = Path("configs/benchmarks/versus_trl.yaml")
PEER = Path("build/peers/trl/bin/python")
WARM_UP_STEPS = 3
"""Steps left out: the first fill, the first publication, and what libraries do once."""
DEADLINE_S = 1800.0
NUM_PROMPTS = 256
PEER_ENVIRONMENT = (
    "OMP_NUM_THREADS=2", "TOKENIZERS_PARALLELISM=false", "HF_HUB_OFFLINE=1", "PYTHONPATH=",
)  # fmt: skip


def small_model(folder: Path, tokenizer: Path) -> Path:
    """A random Llama of 17 million parameters with the tokenizer of the real one."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    GenerationConfig.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def ours(config: Config) -> dict[str, float]:
    """Train our way; tokens and seconds of the steady state."""
    from cluster.driver import train

    train(config)
    rows = read_history(config.run.directory)["train"][WARM_UP_STEPS:]
    return _rate(
        [row["train/trained_tokens"] for row in rows], [row["time/step_s"] for row in rows]
    )


def trl(config: Config, folder: Path) -> dict[str, float]:
    """Train TRL's way, in its own environment; tokens and seconds of the steady state."""
    spec = {
        "model": str(config.model.path.resolve()),
        "prompts": _prompts(config),
        "group_size": config.rollout.group_size,
        "groups_per_step": config.schedule.groups_per_step,
        "max_new_tokens": config.rollout.max_new_tokens,
        "temperature": config.rollout.temperature,
        "epsilon": config.learner.objective.clip_epsilon,
        "lr": config.learner.lr,
        "train_last_layers": config.learner.train_last_layers,
        "steps": config.run.steps,
        "threads": 2,
        "output": str(folder / "trl"),
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    child = subprocess.run(
        ["env", *PEER_ENVIRONMENT, PEER, "benchmarks/trl_peer.py", path],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    found = [line for line in child.stdout.splitlines() if line.startswith("RESULT ")]
    if child.returncode or not found:
        raise RuntimeError(f"TRL ended with {child.returncode}:\n{child.stderr[-3000:]}")
    result = json.loads(found[-1].removeprefix("RESULT "))
    rate = _rate(result["tokens"][WARM_UP_STEPS:], result["seconds"][WARM_UP_STEPS:])
    return rate | {name: result[name] for name in ("prompt_tokens", "trained_parameters", "cores")}


def _prompts(config: Config) -> list[str]:
    """The first prompts of the run's data, rendered as our engines have them."""
    from transformers import AutoTokenizer

    from curricula.rows import read_rows

    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    rows = [row for source in config.data.train for _, row in read_rows(source)]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            chat_template=config.model.chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )
        for row in rows[:NUM_PROMPTS]
    ]


def _rate(tokens: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    return {
        "tokens_per_s": round(sum(tokens) / sum(seconds), 1),
        "tokens_per_step": round(sum(tokens) / len(tokens), 1),
        "step_s": round(sum(seconds) / len(seconds), 3),
        "steps": len(seconds),
    }


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object, return 0 if the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="the small model alone, few steps")
    parser.add_argument("overrides", nargs="*", help="key=value overrides of the config")
    options = parser.parse_args(arguments)
    if not PEER.exists():
        print("TRL's environment is missing; `make bench-peers` creates it", file=sys.stderr)
        return 3
    folder = Path(tempfile.mkdtemp(prefix="sl-bench-"))
    try:
        config = load_config([CONFIG], options.overrides)
        convert(config.model.path)
        prepare_ray(config)
        small = small_model(folder / "small-model", config.model.path)
        models = {
            "small": [
                f"model.path={small}", "learner.train_last_layers=null",
                f"run.steps={WARM_UP_STEPS + (3 if options.short else 20)}",
            ],
            "smollm2-135m": [],
        }  # fmt: skip
        if options.short:
            del models["smollm2-135m"]
        configs = {
            name: load_config(
                [CONFIG], [f"run.root={folder}", f"run.name={name}", *settings, *options.overrides]
            )
            for name, settings in models.items()
        }
        theirs = {name: trl(config, folder) for name, config in configs.items()}
        own = {name: ours(config) for name, config in configs.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures = {n: own[n]["tokens_per_s"] / theirs[n]["tokens_per_s"] for n in configs}
    result = {
        "name": "versus_trl",
        "figure": {name: round(figure, 2) for name, figure in figures.items()},
        "unit": "completion tokens trained per second, ours / TRL",
        "bar": {name: BARS[name] for name in figures},
        "holds": all(figure >= BARS[name] for name, figure in figures.items()),
        "ours": own,
        "trl": theirs,
    }
    print(json.dumps(result))
    return 0 if options.short or result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
