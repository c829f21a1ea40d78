"""Rows of Parquet files and Hugging Face datasets, in small batches: the one door to ``pyarrow``
and ``datasets``, which only those need who use it.

A dataset on disk is read as it lies there, whether ``save_to_disk`` wrote it or it is a folder of
data files; any other name is looked up on the Hub, or in its cache where there is no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safeladder.data_config import SourceConfig
from safeladder.errors import ConfigError, DataError
from safeladder.paths import PathError, kind_of, refuse_pipe

BATCH = 1024
"""Rows in memory at a time."""
_SAVED = ("state.json", "dataset_dict.json")
"""What ``save_to_disk`` writes."""


def table_rows(source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``place: row N``, row) for each row, counted from 1. Raises ``DataError``, or
    ``ConfigError`` if a library is missing."""
    try:
        batches = _parquet(source.path) if source.path is not None else _dataset(source)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield f"{source.place}: row {number}", row
    except ImportError as error:
        raise ConfigError(
            f"{source.place}: needs the library {error.name}; install 'safeladder[data]'"
        ) from None
    if not number:
        raise DataError(f"{source.place}: has no row; check `data`")


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        refuse_pipe(path)
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH)
    except FileNotFoundError:
        raise DataError(f"{path}: cannot be read (no such file); check `data`") from None
    except (OSError, PathError, pyarrow.ArrowException) as error:
        told = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as Parquet ({told}); check `data`") from None


def _dataset(source: SourceConfig) -> Iterator[Any]:
    import datasets

    name, split = str(source.dataset), source.split or "train"
    datasets.disable_progress_bars()
    try:
        if kind_of(Path(name)) == "folder" and any((Path(name) / f).is_file() for f in _SAVED):
            found = datasets.load_from_disk(name)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise ValueError(f"no split {split!r}; it has {', '.join(found)}")
                found = found[split]
        else:
            found = datasets.load_dataset(
                name, source.config, split=split, revision=source.revision
            )
        yield from found.with_format("arrow").iter(BATCH)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        told = " ".join(str(error).split())
        raise DataError(
            f"{source.place}: cannot be loaded ({told}); `dataset` is a folder here or a name on "
            "the Hub"
        ) from None
