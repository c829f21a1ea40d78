"""Models come from a folder of this machine, as safetensors: a path that is none would be taken for
a name on a hub, and asked for over the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from safeladder.errors import EnvironmentUnfitError
from safeladder.paths import PathError, kind_of

LOCAL: Final[dict[str, Any]] = {"local_files_only": True, "use_safetensors": True}
"""For every ``from_pretrained`` of a model."""


def require_folder(path: Path) -> None:
    """Raise ``EnvironmentUnfitError`` unless ``path`` is a folder."""
    try:
        kind, why = kind_of(path), "there is no such folder"
    except PathError as error:
        kind, why = None, str(error)
    if kind != "folder":
        raise EnvironmentUnfitError(
            f"model {path}: {why}; give the folder of a model in Hugging Face layout"
        )
