"""Greedy answers of a model folder by plain ``transformers``, and what they are worth: independent
of the engines, the fleets and the evaluation that a run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evals.detector import ResponseDetector
from evals.held_out import JudgedAnswer, Outcomes, judge
from rewards.exact import ExactAnswer
from safeladder.records import Prompt, ScoreRequest, Verdict, VerdictStatus

BATCH = 32
DETECTORS: list[ResponseDetector] = []
"""Fitted once."""


def answers_of(
    model: Path, prompts: Sequence[Prompt], template: str | None, max_new_tokens: int
) -> list[dict[str, Any]]:
    """``response``, ``tokens`` and ``finish_reason`` for each prompt, in order."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].messages[-1].content))
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        texts = [_rendered(tokenizer, prompts[i], template) for i in chosen]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            made = network.generate(
                **batch,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=end,
                pad_token_id=tokenizer.pad_token_id,
            )
        for i, row in zip(chosen, made[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            stops = end in row
            tokens = row[: row.index(end)] if stops else row
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            finish = "stop" if stops else "length"
            found[i] = {"response": text, "tokens": len(tokens), "finish_reason": finish}
    return [found[i] for i in range(len(prompts))]


def outcomes_of(
    sets: Mapping[str, Sequence[Prompt]], answers: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Outcomes:
    """``set/metric`` → prompt id → outcome; ``own/tokens`` is a length and no rate."""
    DETECTORS[:] = DETECTORS or [ResponseDetector.fit()]
    found: Outcomes = {}
    for name, prompts in sets.items():
        rows = list(zip(prompts, answers[name], strict=True))
        judged = [
            JudgedAnswer(
                prompt=prompt,
                response=answer["response"],
                finish_reason=answer["finish_reason"],
                verdicts=_verdicts(prompt, answer),
            )
            for prompt, answer in rows
        ]
        rates = judge(judged, DETECTORS[0], correctness="rule")
        for metric in ("safe_rate", "helpful_rate", "correct_rate", "broken_rate"):
            if metric in rates:
                found[f"{name}/{metric}"] = rates[metric]
        found[f"{name}/tokens"] = {prompt.id: float(answer["tokens"]) for prompt, answer in rows}
    return found


def _rendered(tokenizer: Any, prompt: Prompt, template: str | None) -> str:
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    how = {} if template is None else {"chat_template": template}
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **how)
    return str(text)


def _verdicts(prompt: Prompt, answer: Mapping[str, Any]) -> dict[str, Verdict]:
    if prompt.meta["kind"] != "task":
        return {}
    rule = ExactAnswer(principle="rule")
    request = ScoreRequest(
        sample_id=prompt.id,
        attempt=1,
        messages=prompt.messages,
        response=answer["response"],
        finish_reason=answer["finish_reason"],
        num_tokens=answer["tokens"],
        route=prompt.route,
        reference=prompt.reference,
        lang=prompt.lang,
        meta=prompt.meta,
    )
    verdict = Verdict(
        sample_id=prompt.id,
        principle="rule",
        verifier=rule.name,
        verifier_version=rule.version,
        status=VerdictStatus.OK,
        score=rule.judge(request).score,
    )
    return {"rule": verdict}
