"""What the verbs of ``safeladder`` share: the app, their usual options, how one ends.

Verbs import what they need when they run, so that ``--help`` and ``schema`` are quick. An error of
``safeladder.errors`` ends a verb with its sentence on stderr and its exit code; ``--debug`` shows
the traceback as well.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from safeladder.errors import ConfigError, SafeladderError

if TYPE_CHECKING:
    from safeladder.config import Config
    from safeladder.ladder_config import Ladder

app = typer.Typer(
    help="Asynchronous reinforcement learning for the safety of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Arguments = Annotated[
    list[str] | None,
    typer.Argument(help="Config files, merged from left to right, and key=value overrides."),
]
Overlays = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="A further config file; may be repeated, later wins."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def load(arguments: Sequence[str] | None, overlays: Sequence[Path] | None) -> Config:
    """Positional files come first, then ``--config`` files, then all overrides."""
    from safeladder.config_loading import load_config
    from safeladder.ladder_config import is_ladder

    paths, overrides = named(arguments, overlays)
    if is_ladder(paths):
        raise ConfigError(
            f"{', '.join(map(str, paths))}: is a ladder, and this is about one run; name the "
            "config of a rung, rungs/NAME/config.yaml in the ladder's folder, or a file without "
            "`ladder`"
        )
    return load_config(paths, overrides)


def named(
    arguments: Sequence[str] | None, overlays: Sequence[Path] | None
) -> tuple[list[Path], list[str]]:
    """Config files and overrides of a command line, in the order in which they count. Raises
    ``ConfigError`` if there is no file."""
    from safeladder.config_loading import files_and_overrides

    files, overrides = files_and_overrides(arguments or ())
    paths = [*files, *(overlays or ())]
    if not paths:
        raise ConfigError("no config file was given: add one, for example configs/demo.yaml")
    return paths, overrides


def load_rungs(arguments: Sequence[str] | None, overlays: Sequence[Path] | None) -> Ladder | None:
    """The ladder, if one of the files has rungs."""
    from safeladder.ladder_config import is_ladder, load_ladder

    paths, overrides = named(arguments, overlays)
    return load_ladder(paths, overrides) if is_ladder(paths) else None


def finish(run: Callable[[], int], debug: bool) -> NoReturn:
    """Exit with the code of ``run``, or of the ``SafeladderError`` that it raised."""
    try:
        code = run()
    except SafeladderError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"safeladder: {error}", err=True)
        code = error.exit_code
    raise typer.Exit(code)


def set_up_logging(debug: bool, *, is_service: bool = False) -> None:
    """Warnings to stderr; everything with ``--debug``."""
    if not (debug or is_service):
        # gRPC writes lines of its own about a handshake that fails, beside our sentence. A service
        # keeps them: they are all there is to see of clients that did not get through.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
