"""What probes cost beside their engine: ``python -m benchmarks.probe [--short]``.

Order probe: 20 rows x 12 levels x 64 tokens in single round on vLLM. Bare: the same prompts through
the same engine, all submitted at once, answers thrown away. Probe: the runner, the journal on disk,
verdicts, figures with their bootstraps, and the page. Both in turns, after a round that warms up
vLLM and its prefix cache. Figure: time of the bare engine over time of the probe, that is the share
of the probe's time that the engine needs.

Importance: ours beside the plain way, which is one forward pass over prompt and answer with all
logits, then a backward pass for each token of the answer through everything, parameters included.
Same model, same threads, in turns; both must find the same values, or there is no figure.

The last line is one JSON object; the exit code is 0 only if both bars hold. ``--short`` takes a
tiny model on transformers and says little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cluster.order_probe import measure_round, outcomes_of
from cluster.order_report import write_order_report
from cluster.placement import compute_on
from cluster.probe_model import ProbeModel, started_engine
from cluster.probe_plan import ProbeRow, plan_trials
from curricula.composer import ComposeOptions, compose_rows
from curricula.composition import Composition
from curricula.rows import read_rows
from curricula.type_difficulty import TypeDifficulty
from evals.order_judging import judge_trial
from evals.order_trials import Trial
from evals.trial_journal import TrialJournal
from evals.trial_runner import answer_trials
from safeladder.ports import RolloutEngine
from safeladder.records import Message, Prompt, Sampling

BAR = 0.9
IMPORTANCE_BAR = 0.6
MODEL = Path("build/models/smollm2-135m-instruct")
SEEDS = Path("demo/data/heldout.jsonl")


def compose(num_rows: int, num_constraints: int) -> list[ProbeRow]:
    """Harmless questions with drawn constraints."""
    asked = [
        (place, {"prompt": row["prompt"], "id": row["id"]})
        for place, row in read_rows(SEEDS)
        if row["meta"]["kind"] == "helpful"
    ]
    options = ComposeOptions(counts=(num_constraints,), orders="none")
    made = compose_rows(asked[:num_rows], options)
    return [ProbeRow(str(row["id"]), Composition.from_row(row)) for row in made]


async def order_seconds(
    options: ProbeModel, trials: Sequence[Trial], rounds: int, folder: Path
) -> dict[str, list[float]]:
    """Seconds of each round, bare and probe in turns."""
    seconds: dict[str, list[float]] = {"bare": [], "probe": []}
    async with started_engine(options) as engine:
        await bare(engine, trials, options.max_new_tokens)
        for number in range(rounds):
            began = time.monotonic()
            await bare(engine, trials, options.max_new_tokens)
            seconds["bare"].append(time.monotonic() - began)
            began = time.monotonic()
            await probe(engine, trials, options.max_new_tokens, folder / str(number))
            seconds["probe"].append(time.monotonic() - began)
    return seconds


async def bare(engine: RolloutEngine, trials: Sequence[Trial], max_new_tokens: int) -> None:
    """All prompts at once; what comes is thrown away."""
    sampling = Sampling(num_samples=1, max_new_tokens=max_new_tokens, temperature=0.0, seed=0)

    async def ask(trial: Trial) -> None:
        prompt = Prompt(id=trial.id, messages=(Message("user", trial.turns[0]),), route="probe")
        async for _ in engine.generate(trial.id, prompt, sampling):
            pass

    await asyncio.gather(*(ask(trial) for trial in trials))


async def probe(
    engine: RolloutEngine, trials: Sequence[Trial], max_new_tokens: int, folder: Path
) -> None:
    """What ``safeladder probe order`` does once its engine is there."""
    with TrialJournal(folder / "trials.jsonl", {}) as journal:
        await answer_trials(
            [engine],
            trials,
            judge_trial,
            journal,
            max_new_tokens=max_new_tokens,
            deadline_s=600,
        )
        found = measure_round(outcomes_of(trials, journal), seed=0)
    report: dict[str, Any] = {key: {} for key in ("settings", "generation", "packages", "failures")}
    report |= {"rounds": {"single": found}, "template_adds": "", "samples": []}
    difficulty = {"source": "", "counts": {"types": {}}, "hard_to_easy": []}
    write_order_report(folder, report | {"difficulty": difficulty})


def importance_seconds(
    path: Path, trials: Sequence[Trial], max_new_tokens: int
) -> tuple[dict[str, list[float]], int]:
    """Seconds for each prompt, ours and plain in turns, and the tokens of all answers. Raises
    ``ValueError`` if the two find different values."""
    import torch
    from transformers import AutoModelForCausalLM

    from actors.local_model import LOCAL
    from actors.rendering import PromptRenderer
    from evals.importance import greedy_answer, importance

    ours = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **LOCAL).eval()
    ours.requires_grad_(False)
    trained = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **LOCAL).eval()
    renderer = PromptRenderer(path)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    num_tokens = 0
    for number, trial in enumerate(trials):
        turn = Message("user", trial.turns[0])
        prompt = renderer.render(Prompt(id="p", messages=(turn,), route="probe"))
        answer = greedy_answer(ours, prompt, renderer.stop_ids, max_new_tokens)
        if not number:  # the first passes of each side are slower
            importance(ours, prompt, answer[:2])
            plain_importance(trained, prompt, answer[:2])
        began = time.monotonic()
        found = importance(ours, prompt, answer)
        seconds["ours"].append(time.monotonic() - began)
        began = time.monotonic()
        expected = plain_importance(trained, prompt, answer)
        seconds["plain"].append(time.monotonic() - began)
        if not np.allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()):
            raise ValueError(f"prompt {number}: the two ways to importance differ")
        num_tokens += answer.size
    return seconds, num_tokens


def plain_importance(model: Any, prompt: Any, answer: Any) -> Any:
    """I [P, M] by a full backward pass for each token, with all parameters' gradients."""
    import torch

    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    shares = torch.softmax(model(inputs_embeds=embeddings[None]).logits[0], -1)
    columns = []
    for m, token in enumerate(answer):
        model.zero_grad()
        embeddings.grad = None
        share = shares[prompt.size + m - 1, int(token)]
        torch.autograd.backward(share, retain_graph=m < answer.size - 1)
        columns.append((embeddings.grad * embeddings.detach()).sum(-1)[: prompt.size])
    return torch.stack(columns, 1).numpy()


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers, and a tokenizer of words that were never seen."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # type: ignore[import-untyped]
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {word: k for k, word in enumerate(["<unk>", "</s>", *map(chr, range(32, 500))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}",
    ).save_pretrained(folder)
    return folder


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object, return 0 if the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    compute_on(options.threads)
    with tempfile.TemporaryDirectory(prefix="sl-bench-") as folder:
        result = measure(Path(folder), options)
    print(json.dumps(result))
    return 0 if options.short or result["holds"] else 1


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both parts on the model of the size that is asked for."""
    from demo.convert_smollm2 import convert

    short, threads = options.short, options.threads
    if short:
        path, num_rows, count, tokens = tiny_model(folder / "model"), 2, 3, 4
    else:
        convert(MODEL)
        path, num_rows, count, tokens = MODEL, options.rows, 7, 64
    rows = compose(num_rows, count)
    trials = plan_trials(rows, TypeDifficulty(), rounds=("single",))
    asked = ProbeModel(
        path=path,
        engine="transformers" if short else "vllm",
        dtype="float32",
        max_prompt_tokens=1024,
        max_new_tokens=tokens,
        threads=threads,
    )
    order = asyncio.run(
        order_seconds(asked, trials, 1 if short else options.rounds, folder / "probes")
    )
    first = [trial for trial in trials if trial.inversions == 0][:4]
    importance, answered = importance_seconds(path, first, 4 if short else 16)
    figure = median(order["bare"]) / median(order["probe"])
    ratio = sum(importance["ours"]) / sum(importance["plain"])
    return {
        "name": "probe",
        "figure": round(figure, 3),
        "unit": "time of the bare engine / time of the order probe",
        "bar": BAR,
        "holds": figure >= BAR and ratio <= IMPORTANCE_BAR,
        "importance_ratio": round(ratio, 3),
        "importance_bar": IMPORTANCE_BAR,
        "order_s": {side: [round(s, 2) for s in order[side]] for side in order},
        "answers": len(trials),
        "importance_s": {side: [round(s, 2) for s in importance[side]] for side in importance},
        "backward_passes": answered,
        "threads": threads,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
