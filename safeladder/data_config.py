"""``data``: where prompts come from, and in which shares their labels are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from safeladder.config_section import Flag, Name, PositiveInt, Section, Weight

Column = Literal[
    "id", "prompt", "messages", "reference", "route", "label", "images", "lang", "meta", "response"
]
"""What a row may have; all else is ``meta``."""


class SourceConfig(Section):
    """One source of prompts in full."""

    path: Path | None = None
    """A JSON-lines or Parquet (``.parquet``) file."""
    dataset: str | None = None
    """Instead of ``path``: a Hugging Face dataset, as a local folder or by its name on the Hub."""
    config: str | None = None
    """Configuration of the dataset, if it has several."""
    split: str | None = None
    """Of the dataset, such as ``train`` or ``train[:1000]``; null takes ``train``."""
    revision: str | None = None
    """Commit of a dataset on the Hub."""
    columns: dict[Column, str] = Field(default={})
    """Our column → theirs: ``{prompt: input, reference: label}`` is OpenRLHF's ``input_key`` and
    ``label_key``. Names of TRL and verl are known without it."""
    labels: tuple[Name, ...] = ()
    """Take only rows of these routes; empty takes all."""
    limit: PositiveInt | None = None
    """Take so many rows, the first ones."""
    weight: Weight = 1.0
    """A row of weight 2 is asked twice as often as one of weight 1 with the same label."""

    @model_validator(mode="after")
    def _is_one_source(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give `path` or `dataset`, one of the two")
        if self.path is not None:
            for key in ("config", "split", "revision"):
                if getattr(self, key) is not None:
                    raise ValueError(f"`{key}` belongs to a `dataset`; a file has none")
        return self

    @property
    def place(self) -> str:
        """As a message names it."""
        if self.path is not None:
            return str(self.path)
        config = f"/{self.config}" if self.config else ""
        return f"{self.dataset}{config}[{self.split or 'train'}]"


def _kind(value: Any) -> str:
    return "[source]" if isinstance(value, dict | SourceConfig) else "[path]"


Source = Annotated[
    Annotated[Path, Tag("[path]")] | Annotated[SourceConfig, Tag("[source]")],
    Discriminator(_kind),
]
"""A path, or a source in full."""


class DataConfig(Section):
    """Prompts: sources, order and mixture."""

    train: tuple[Source, ...]
    """Files of prompts (JSON lines or Parquet), or sources in full: ``{path | dataset, …}``."""
    held_out: tuple[Source, ...] = ()
    """Prompts of the evaluation before and after, from sources as in ``train``."""
    shuffle: Flag = True
    """New order in every pass, a pure function of (seed, epoch)."""
    mix: dict[Name, Weight] = Field(default={})
    """Label → share of the groups, kept exactly; shares are made to add up to 1. Every label walks
    its own passes. Empty asks all rows of all labels equally often."""
