"""Importance of constraints in single-round instructions, trial by trial, and over all trials.

For each trial the model answers greedily; every token of the answer is gone back from to the
prompt; the importance of tokens is summed over constraints. One safetensors file a trial holds the
raw I [P, M] and everything that was made of it, and is there whole or not at all, so a study goes
on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from evals.importance import greedy_answer, importance
from evals.importance_spans import (
    PBIF_DENSITY,
    Density,
    Span,
    by_constraint,
    constraint_spans,
    slot_of_tokens,
    token_density,
    token_weights,
)
from evals.order_trials import Trial
from evals.trial_runner import Judge
from safeladder.errors import ConfigError, EnvironmentUnfitError
from safeladder.records import Message, Prompt, Tokens
from safeladder.whole_file import replace_file

MAX_NEW_TOKENS = 200
"""PBIF's limit of an answer."""


class Renderer(Protocol):
    """Between text and tokens; ``actors.rendering.PromptRenderer`` is one."""

    stop_ids: tuple[int, ...]

    def render_with_offsets(self, prompt: Prompt) -> tuple[str, Tokens, tuple[Span, ...]]:
        """Text, token ids [P] and their places in the text."""
        ...

    def decode(self, tokens: Tokens) -> str:
        """Text of sampled ids."""
        ...


def study(
    model: Any,
    renderer: Renderer,
    trials: Sequence[Trial],
    judge: Judge,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    density: Density = PBIF_DENSITY,
    on_trial: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """A record for each trial, those that lie in ``folder`` taken from there.

    Raises ``ConfigError`` for a file of other ``settings``, ``EnvironmentUnfitError`` for one that
    cannot be written.
    """
    own = {"max_new_tokens": max_new_tokens, "density": asdict(density)}
    told = json.loads(json.dumps({**settings, **own}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentUnfitError(f"{folder} cannot be made: {error.strerror}") from None
    records = []
    for trial in trials:
        path = folder / f"{hashlib.sha256(trial.id.encode()).hexdigest()[:16]}.safetensors"
        record = _read(path, told)
        if record is None:
            made = _importance_of(model, renderer, trial, max_new_tokens)
            record = _record(renderer, trial, judge, made, density)
            _write(path, made.arrays, record, told)
        records.append(record)
        on_trial(record)
    return records


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What the model gave for one trial."""

    text: str
    offsets: tuple[Span, ...]
    spans: list[Span]
    arrays: dict[str, npt.NDArray[Any]]


def _importance_of(model: Any, renderer: Renderer, trial: Trial, max_new_tokens: int) -> _Made:
    (turn,) = trial.turns
    prompt = Prompt(id=trial.id, messages=(Message("user", turn),), route="probe")
    text, tokens, offsets = renderer.render_with_offsets(prompt)
    spans = constraint_spans(text, [one["text"] for one in trial.constraints])
    answer = greedy_answer(model, tokens, renderer.stop_ids, max_new_tokens)
    arrays: dict[str, npt.NDArray[Any]] = {
        "importance": importance(model, tokens, answer),
        "prompt_tokens": tokens,
        "answer_tokens": answer,
        "slots": slot_of_tokens(offsets, spans),
    }
    return _Made(text=text, offsets=offsets, spans=spans, arrays=arrays)


def _record(
    renderer: Renderer, trial: Trial, judge: Judge, made: _Made, density: Density
) -> dict[str, Any]:
    raw, slots = made.arrays["importance"], made.arrays["slots"]
    weights = token_weights(raw)
    answer = renderer.decode(made.arrays["answer_tokens"])
    record = {
        "trial": trial.id,
        "prompt": trial.prompt,
        "cluster": trial.cluster,
        "cddi": trial.cddi,
        "ranks": trial.ranks,
        "types": trial.types,
        "passed": [None if isinstance(one, str) else one for one in judge(trial, answer)],
        "answer": answer,
        "text": made.text,
        "offsets": made.offsets,
        "constraint_spans": made.spans,
        "weights": weights.tolist(),
        "density": token_density(raw, density).tolist(),
        **by_constraint(weights, slots, len(made.spans)),
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def _write(
    path: Path, arrays: Mapping[str, Any], record: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    told = {"record": json.dumps(record), "settings": json.dumps(settings)}
    try:
        replace_file(path, [save(dict(arrays), told)])
    except OSError as error:
        raise EnvironmentUnfitError(f"{path} cannot be written: {error.strerror}") from None


def _read(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier study; None if there is none, or none that can be read."""
    try:
        with safe_open(path, "numpy") as file:
            stored = {key: json.loads(value) for key, value in file.metadata().items()}
            record: dict[str, Any] = stored["record"]
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError):
        return None
    if stored.get("settings") != settings:
        raise ConfigError(f"{path} is of a study with other settings: name another --out")
    return record
