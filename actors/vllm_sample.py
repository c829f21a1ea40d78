"""One sample as vLLM has it: one request, or several if it must start afresh.

Owns which version made which token, and what a request's output is worth. Does not know the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from actors.vllm_images import Shown
from safeladder.partials import PartialCompletion
from safeladder.records import Sampling, Tokens

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput


@dataclass(eq=False, slots=True)
class VllmSample:
    """A sample in flight."""

    request_id: str
    prompt: Tokens
    sampling: Sampling
    begun: PartialCompletion
    """As it came. To vLLM its tokens are part of the prompt."""
    shown: Shown | None = None
    """The prompt's images."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """(first token made here, version that made it and the following ones)"""
    internal_id: str = ""
    """vLLM's own name of the request, new for each submission."""
    num_made: int = 0
    """Tokens that a finished sample got here; while it runs vLLM has the count."""
    starts_afresh: bool = False
    is_interrupted: bool = False

    @property
    def name(self) -> str:
        """What vLLM is told."""
        return f"{self.request_id}/{self.begun.index}"

    @property
    def all_prompt_tokens(self) -> list[int]:
        """What vLLM goes on from."""
        return [*self.prompt.tolist(), *self.begun.tokens.tolist()]

    def params(self, stop_ids: list[int]) -> SamplingParams:
        """What vLLM is asked for: the budget that is left."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=self.begun.seed(sampling),
            max_tokens=sampling.max_new_tokens - self.begun.tokens.size,
            stop_token_ids=stop_ids,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def so_far(self, output: RequestOutput | None) -> PartialCompletion:
        """All tokens, with those of an output."""
        if output is None or not output.outputs[0].token_ids:
            return self.begun
        answer = output.outputs[0]
        tokens = np.asarray(answer.token_ids, dtype=np.int32)
        versions = np.zeros(tokens.size, dtype=np.int32)
        for first, version in self.spans:
            versions[first:] = version
        logprobs = np.asarray(answer.logprobs.logprobs, dtype=np.float32)
        return self.begun.and_then(tokens, logprobs, versions)
