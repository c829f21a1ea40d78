"""The rows of a stage, read, checked and rendered to token ids: all that a learner is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from actors.rendering import PromptRenderer
from cluster.supervised import accepted_rows, most_tokens
from curricula.preferences import load_preferences, select
from curricula.prefix_returns import load_returns
from learners.preference import PreferenceRow
from learners.row_plan import RowPlan
from learners.value_model import ValueRow
from safeladder.config import Config
from safeladder.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class StageRows:
    """Rows in file order, those for validation included."""

    rows: Sequence[Any]
    """Of the type that the stage's task takes."""
    summary: Mapping[str, Any]
    """What ``summary.json`` says of them."""
    lines: Sequence[str]
    """What a person is told of them."""


def load_stage_rows(config: Config, folder: Path | None = None, *, ask: bool = True) -> StageRows:
    """Everything that ``config.stage`` trains on. In ``folder``, that of the run, decisions about
    rows are kept; without ``ask`` no principle is asked about them.

    Raises ``ConfigError`` for a section without files or with too few rows, ``DataError`` for a
    row.
    """
    assert config.rows is not None, "the run has no stage that passes over rows"
    if not config.rows.data:
        raise ConfigError(f"{config.stage}.data names no file; list the files to train on")
    found = _LOADERS[config.stage](config, folder, ask)
    plan = plan_of(config, len(found.rows))
    if plan.steps_per_epoch < 1:
        raise DataError(f"{config.stage}.data: no row is left to train; add some")
    held = f", {len(plan.validation)} of them for validation" if plan.validation else ""
    told = f"{len(found.rows)} rows{held}, {plan.num_steps} steps"
    return StageRows(found.rows, found.summary, [*found.lines, told])


def plan_of(config: Config, num_rows: int) -> RowPlan:
    """Which rows each step of the run trains."""
    assert config.rows is not None, "the run has no stage that passes over rows"
    return RowPlan(num_rows, config.rows, config.run.seed, config.run.steps)


def digest_of(config: Config, rows: Sequence[Any]) -> str:
    """Hex SHA-256 of all that decides which rows a step trains: a resumed run must have the same.
    Epochs may be added."""
    assert config.rows is not None, "the run has no stage that passes over rows"
    settings = (config.stage, config.run.seed, config.rows.batch_size, config.rows.validation_share)
    digest = hashlib.sha256(json.dumps(settings).encode())
    for row in rows:
        for column in fields(row):
            value = getattr(row, column.name)
            if isinstance(value, np.ndarray):
                digest.update(f"{column.name}{value.shape}".encode())
                digest.update(value.tobytes())
            else:
                digest.update(f"{column.name}{value!r}".encode())
    return digest.hexdigest()


def _supervised(config: Config, folder: Path | None, ask: bool) -> StageRows:
    rows, acceptance = accepted_rows(config, folder, ask=ask)
    assert acceptance is not None, "the section sft is there"
    return StageRows(rows, {"acceptance": acceptance.summary()}, list(acceptance.lines()))


def _preference(config: Config, folder: Path | None, ask: bool) -> StageRows:
    """Answers are cut to ``preference.cutoff``, as LLaMA-Factory does; pairs that are the same up
    to there are left out, and both are told."""
    assert config.preference is not None, "the section preference is there"
    renderer = PromptRenderer.from_config(config.model)
    budget = config.learner.micro_batch_tokens
    most = min(config.preference.cutoff, most_tokens(config))
    pairs, lines = load_preferences(config.preference.data), []
    told: dict[str, Any] = {"read": len(pairs)}
    if (selection := config.preference.select) is not None:
        pairs, rehearsed = select(pairs, selection, config.run.seed)
        told |= {"selected": len(pairs) - rehearsed, "rehearsed": rehearsed}
        lines.append(
            f"{told['selected']} of {told['read']} pairs selected by {selection.column}, and "
            f"{rehearsed} of the others rehearsed"
        )
    rows, cut, same = [], 0, 0
    for pair in pairs:
        prompt = renderer.render_messages(pair.messages)
        room = most - prompt.size
        if room < 1:
            raise DataError(
                f"{pair.place}: column prompt: has {prompt.size} tokens and leaves no room for an "
                f"answer within {most} (preference.cutoff, learner.micro_batch_tokens and the "
                "model's positions); shorten or remove it"
            )
        answers = [renderer.encode_answer(text) for text in (pair.chosen, pair.rejected)]
        chosen, rejected = (answer[:room] for answer in answers)
        needed = prompt.size + chosen.size + rejected.size - 2
        if needed > budget:
            raise ConfigError(
                f"learner.micro_batch_tokens is {budget}, but the pair of {pair.place} needs "
                f"{needed}: the prompt and both answers lie in one row; raise it, or lower "
                "preference.cutoff"
            )
        cut += any(answer.size > room for answer in answers)
        if np.array_equal(chosen, rejected):
            same += 1
            continue
        rows.append(PreferenceRow(prompt_tokens=prompt, chosen=chosen, rejected=rejected))
    told |= {"cut": cut, "same_up_to_the_cutoff": same}
    lines += [f"{cut} pairs with an answer cut at {most} tokens"] if cut else []
    lines += [f"{same} pairs left out: the same up to there"] if same else []
    return StageRows(rows, {"pairs": told}, lines)


def _value_model(config: Config, folder: Path | None, ask: bool) -> StageRows:
    assert config.value_model is not None, "the section value_model is there"
    renderer = PromptRenderer.from_config(config.model)
    principles, most = config.value_model.principles, most_tokens(config)
    rows = []
    for row in load_returns(config.value_model.data, principles):
        prompt = renderer.render_messages(row.messages)
        prefix = renderer.encode_prefix(row.prefix)
        if prompt.size + prefix.size > most:
            raise DataError(
                f"{row.place}: prompt and prefix have {prompt.size + prefix.size} tokens; the "
                f"most is {most} (learner.micro_batch_tokens and the model's positions)"
            )
        rows.append(
            ValueRow(
                prompt_tokens=prompt,
                tokens=np.append(prefix, np.int32(0)),
                returns=np.array([row.returns.get(p, 0.0) for p in principles], np.float32),
                known=np.array([p in row.returns for p in principles], np.float32),
            )
        )
    return StageRows(rows, {}, [])


_LOADERS = {"sft": _supervised, "preference": _preference, "value_model": _value_model}
