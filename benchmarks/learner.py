"""One training step of our learner beside the loop that people write, on the same sequences.

Ours: one rank on DeepSpeed, each prompt once in a packed row, logits of the trained tokens alone.
Plain: transformers and AdamW, one padded batch a group of siblings, logits of every position.
Same checkpoint, all parameters trained, same loss, same threads; the lengths stand in
``learner_sides.make_samples``. Each side has a process of its own; the rounds take turns, and the
other side waits meanwhile. Both must find the same loss and gradient norm, or there is no figure.

Figure: trained completion tokens per second, ours over plain, from the medians of the rounds.
Memory: the peak of the resident size while training, in total (libraries, weights, optimizer,
activations).
The exit code is 0 only if both bars hold. ``--short`` takes a tiny model and says little.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from benchmarks.learner_sides import Step, Work, serve

BAR = 1.5
MEMORY_BAR = 0.8
SIDES = ("ours", "plain")
DEADLINE_S = 600.0
MODEL = Path("build/models/smollm2-135m-instruct")


def measure(work: Work, rounds: int) -> dict[str, list[Step]]:
    """``rounds`` steps of each side in turns, after one that warms up."""
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    processes = []
    for side in SIDES:
        lines[side], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(other, side, work), daemon=True))
        processes[-1].start()
        other.close()
    try:
        for side in SIDES:
            _answer(lines[side], side)
        steps: dict[str, list[Step]] = {side: [] for side in SIDES}
        for _ in range(rounds + 1):
            for side in SIDES:
                lines[side].send("step")
                steps[side].append(_answer(lines[side], side))
        for side in SIDES:
            lines[side].send(None)
        return steps
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def _answer(line: Connection, side: str) -> Step:
    if not line.poll(DEADLINE_S):
        raise TimeoutError(f"{side} did not answer in {DEADLINE_S:.0f} s")
    answer: Step = line.recv()
    return answer


def report(work: Work, steps: dict[str, list[Step]]) -> dict[str, object]:
    """The figures; raises ``ValueError`` if the sides did not compute the same."""
    for ours, plain in zip(*(steps[side] for side in SIDES), strict=True):
        for name in ("loss", "grad_norm"):
            found, expected = getattr(ours, name), getattr(plain, name)
            if not math.isclose(found, expected, rel_tol=2e-3, abs_tol=1e-4):
                raise ValueError(f"the sides differ: {name} is {found} here, {expected} there")
    tokens = work.groups * work.siblings * work.max_new_tokens // 2
    seconds = {side: median(s.seconds for s in steps[side][1:]) for side in SIDES}
    peak = {side: steps[side][-1].peak_bytes for side in SIDES}
    loaded = {side: steps[side][-1].loaded_bytes for side in SIDES}
    figure = seconds["plain"] / seconds["ours"]
    memory = peak["ours"] / peak["plain"]
    return {
        "name": "learner",
        "figure": round(figure, 2),
        "unit": "trained tokens/s, ours / plain",
        "bar": BAR,
        "holds": figure >= BAR and memory <= MEMORY_BAR,
        "memory_ratio": round(memory, 2),
        "memory_bar": MEMORY_BAR,
        "tokens_per_s": {side: round(tokens / seconds[side], 1) for side in SIDES},
        "step_s": {side: [round(s.seconds, 2) for s in steps[side][1:]] for side in SIDES},
        "peak_mib": {side: peak[side] >> 20 for side in SIDES},
        "loaded_mib": {side: loaded[side] >> 20 for side in SIDES},
        "tokens_per_step": tokens,
        "threads": work.threads,
    }


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object, return 0 if the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sl-bench-") as folder:
        if options.short:
            model, groups, longest = tiny_model(Path(folder)), 2, 32
        else:
            from demo.convert_smollm2 import convert

            convert(MODEL)
            model, groups, longest = MODEL, 2, 128
        work = Work(
            model=model,
            groups=groups,
            siblings=8,
            prompt_tokens=longest // 2,
            max_new_tokens=longest,
            threads=options.threads,
        )
        result = report(work, measure(work, options.rounds))
    print(json.dumps(result))
    return 0 if options.short or result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
