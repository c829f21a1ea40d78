"""``learner.lora``: train low-rank adapters instead of the weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from safeladder.config_section import PositiveInt, Section


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on linear layers of the decoder: what is
    trained is B·A, and a layer computes W + alpha / rank · B·A. There is no dropout: a policy must
    price its tokens as the engine did that sampled them."""

    rank: PositiveInt = 8
    """Rows of A, columns of B."""
    alpha: PositiveInt = 16
    """Scale of the adapters, divided by ``rank``."""
    target: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the layers that get an adapter, such as ``[q_proj, v_proj]``; ``all-linear`` is
    every linear layer of the decoder, without the output embedding."""
