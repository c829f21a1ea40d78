"""Rows of supervised training: prompt and response as token ids, the stop token trained too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from actors.rendering import PromptRenderer
from cluster.acceptance import Acceptance, judge_demonstrations, read_acceptance
from cluster.model_folder import read_model_folder
from curricula.demonstrations import Demonstration, load_demonstrations
from learners.supervised import SftRow
from safeladder.config import Config
from safeladder.errors import DataError
from safeladder.images import PromptImage
from vision.reading import BadImageError

TOO_LONG = "too long"


def most_tokens(config: Config) -> int:
    """Longest row that a learner can take: of one packed row, and of the model's positions."""
    budget = config.learner.micro_batch_tokens
    return min(budget, read_model_folder(config.model.path).max_positions or budget)


def supervised_rows(config: Config) -> list[SftRow]:
    """All rows of ``sft.data`` that are accepted, in file order, in the same chat format as the
    rollouts."""
    return accepted_rows(config)[0]


def accepted_rows(
    config: Config, folder: Path | None = None, *, ask: bool = True
) -> tuple[list[SftRow], Acceptance | None]:
    """The same, and what was refused and why. In ``folder``, that of the run, the decision is kept;
    if it stands there already, it is not taken again. Without ``ask`` no principle is asked. Raises
    ``DataError`` if nothing is left."""
    if config.sft is None:
        return [], None
    demonstrations = load_demonstrations(config.sft.data)
    known = None if folder is None else read_acceptance(folder, demonstrations)
    acceptance = known or judge_demonstrations(config, demonstrations, ask=ask)
    renderer = PromptRenderer.from_config(config.model)
    most = min(config.sft.max_tokens or most_tokens(config), most_tokens(config))
    rows, long = [], {}
    shown: dict[str, PromptImage] = {}
    for index in acceptance.accepted:
        demonstration = demonstrations[index]
        images = tuple(_look(renderer, path, shown, demonstration) for path in demonstration.images)
        try:
            prompt_tokens = renderer.render_messages(demonstration.messages, images)
        except BadImageError as error:
            raise DataError(f"{demonstration.place}: {error}") from None
        row = SftRow(
            prompt_tokens=prompt_tokens,
            tokens=renderer.encode_answer(demonstration.response),
            images=images,
        )
        if row.prompt_tokens.size + row.tokens.size > most:
            long[index] = TOO_LONG
        else:
            rows.append(row)
    acceptance = Acceptance(demonstrations, {**acceptance.refused, **long})
    acceptance.require_some()
    if folder is not None and known is None:
        acceptance.write(folder)
    return rows, acceptance


def _look(
    renderer: PromptRenderer, path: str, shown: dict[str, PromptImage], row: Demonstration
) -> PromptImage:
    """An image without its file; each path is read once. Raises ``DataError``."""
    if path not in shown:
        try:
            (image,) = renderer.look_at([path])
        except BadImageError as error:
            raise DataError(
                f"{row.place}: column images: {error}; correct the path, or remove the row"
            ) from None
        shown[path] = replace(image, file=b"")
    return shown[path]
