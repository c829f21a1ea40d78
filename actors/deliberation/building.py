"""From ``rollout.environment`` to an environment: by kind, or by import path."""

from __future__ import annotations

import inspect
from typing import cast

from rewards.building import check_options, load_object
from safeladder.conversation import Environment
from safeladder.environment_config import EnvironmentConfig
from safeladder.errors import ConfigError

KEY = "rollout.environment"
KINDS = {
    "scripted": "actors.deliberation.scripted:ScriptedTurns",
}
_METHODS = ("start", "begin", "reply", "close")


def build_environment(config: EnvironmentConfig) -> Environment:
    """Construct the environment: ``Class(**options)``. Nothing is read yet.

    Raises ``ConfigError`` naming the dotted key, the fault and the nearest valid choice.
    """
    path = config.path or KINDS[cast(str, config.kind)]
    cls = load_object(path, f"{KEY}.path")
    if not inspect.isclass(cls):
        raise ConfigError(f"{KEY}.path: {path!r} is not a class")
    lacking = [name for name in _METHODS if not callable(getattr(cls, name, None))]
    lacking += [] if hasattr(cls, "is_resumable") else ["is_resumable"]
    if lacking:
        raise ConfigError(
            f"{KEY}.path: {path!r} is no environment: it lacks {', '.join(lacking)} "
            "(see safeladder.conversation.Environment)"
        )
    if waiting := [n for n in _METHODS if inspect.iscoroutinefunction(getattr(cls, n))]:
        raise ConfigError(
            f"{KEY}.path: {waiting[0]} of {path!r} is a coroutine function; environments are plain "
            "functions, called in threads"
        )
    options = check_options(cls, config.options, f"{KEY}.options")
    try:
        return cast(Environment, cls(**options))
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{KEY}.options: {error}") from error
