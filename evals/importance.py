"""Importance of prompt tokens: gradient times input embedding, for each token of an answer.

After Wu et al. 2023 (arXiv 2310.00492), as PBIF uses it (arXiv 2502.17204). With the embeddings E
of the prompt and the model's own greedy answer y, teacher-forced::

    I[n, m] = sum over d of ( d p(y_m | x, y_<m) / d E[n, d] ) * E[n, d]

Probabilities, not log-probs, in float32. It is no attention weight and has no layers.

A backward pass for each token of the answer is what it costs, and here is how each is kept short:
parameters are frozen, so only activations are gone back through; the model runs on the answer up to
the end of a chunk alone, since a causal model's p(y_m) depends on nothing behind m; and logits are
made at the chunk's positions alone. Memory: the activations of one forward pass, whatever the
answer's length, beside one [P, M] result.

Knows no constraints and no text; where tokens lie in a prompt is ``evals.importance_spans``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from safeladder.records import Floats, Tokens

CHUNK_TOKENS = 16
"""Tokens of the answer that share a forward pass."""


def importance(
    model: Any, prompt: Tokens, answer: Tokens, *, chunk_tokens: int = CHUNK_TOKENS
) -> Floats:
    """I [P, M] of a prompt [P] and an answer [M], both token ids, under a causal model of
    transformers in evaluation mode.

    Raises ``ValueError`` for an empty prompt or answer, for weights that are not float32, and for a
    model whose parameters want gradients, which would be computed for nothing.
    """
    if not prompt.size or not answer.size:
        raise ValueError(f"{prompt.size} prompt tokens, {answer.size} of the answer: both need one")
    if any(p.requires_grad or p.dtype != torch.float32 for p in model.parameters()):
        raise ValueError("importance needs frozen float32 weights: model.float(), requires_grad_()")
    device = model.get_input_embeddings().weight.device
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64)).to(device)
    found = [
        _chunk(model, ids, prompt.size, start, min(start + chunk_tokens, answer.size))
        for start in range(0, answer.size, chunk_tokens)
    ]
    return np.ascontiguousarray(torch.cat(found).T.cpu().numpy())


@torch.no_grad()
def greedy_answer(
    model: Any, prompt: Tokens, stop_ids: Sequence[int], max_new_tokens: int
) -> Tokens:
    """The model's own greedy answer [M], M >= 1, its stop token included."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None].to(model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
    )
    answer: Tokens = output[0, prompt.size :].cpu().numpy().astype(np.int32)
    return answer


def _chunk(model: Any, ids: torch.Tensor, num_prompt: int, start: int, end: int) -> torch.Tensor:
    """I [end - start, P] of tokens ``start`` to ``end`` of the answer.

    p(y_m) depends on the hidden state at its own position alone, so its way through the vocabulary
    is gone back once for the whole chunk; from there a pass for each token leads to the prompt.
    """
    embed = model.get_input_embeddings()
    prompt = embed(ids[:num_prompt]).detach().requires_grad_()  # [P, D]
    inputs = torch.cat([prompt, embed(ids[num_prompt : num_prompt + end - 1])])
    count = end - start
    with _Head(model) as head:
        logits = model(inputs_embeds=inputs[None], use_cache=False, logits_to_keep=count).logits
    targets = ids[num_prompt + start : num_prompt + end]
    probabilities = logits[0].softmax(-1).gather(1, targets[:, None])
    hidden = head.hidden  # [1, count, D]
    (slopes,) = torch.autograd.grad(probabilities.sum(), hidden)
    rows = []
    for m in range(count):
        seed = torch.zeros_like(slopes)
        seed[:, m] = slopes[:, m]
        (gradient,) = torch.autograd.grad(hidden, prompt, seed, retain_graph=m < count - 1)
        rows.append((gradient * prompt.detach()).sum(-1))
    return torch.stack(rows)


class _Head:
    """Sees what goes into the output embeddings while a model runs."""

    def __init__(self, model: Any) -> None:
        self._module = model.get_output_embeddings()
        self.hidden: torch.Tensor = torch.empty(0)

    def __enter__(self) -> _Head:
        self._hook = self._module.register_forward_pre_hook(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _see(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        (self.hidden,) = inputs
