"""From ``rollout.environment`` to an environment: by kind, or by import path."""

from __future__ import annotations

import inspect
from typing import cast

from actors.deliberation.openrlhf_agents import OpenRlhfAgents, is_agent
from rewards.building import check_options, load_object
from safeladder.config import Config
from safeladder.conversation import Environment
from safeladder.errors import ConfigError

KEY = "rollout.environment"
KINDS = {
    "scripted": "actors.deliberation.scripted:ScriptedTurns",
    "search": "actors.deliberation.search:SearchEnvironment",
}
_METHODS = ("start", "begin", "reply", "close")


def build_environment(config: Config) -> Environment:
    """Construct the environment of ``rollout``: ``Class(**options)``, and an agent written for
    OpenRLHF as it is. A constructor that asks for ``model_path``, ``max_turns`` or
    ``reply_tokens`` gets those of the run. Nothing is read yet.

    Raises ``ConfigError`` naming the dotted key, the fault and the nearest valid choice.
    """
    settings, rollout = config.rollout.environment, config.rollout
    assert settings is not None, "a run without an environment builds none"
    path = settings.path or KINDS[cast(str, settings.kind)]
    cls = load_object(path, f"{KEY}.path")
    if not inspect.isclass(cls):
        raise ConfigError(f"{KEY}.path: {path!r} is not a class")
    if is_agent(cls):
        if settings.options:
            raise ConfigError(f"{KEY}.options: agents of OpenRLHF take none; remove them")
        sampling = {"temperature": rollout.temperature, "top_p": rollout.top_p}
        return OpenRlhfAgents(cls, f"{KEY}.path", sampling)
    _require_environment(cls, path)
    given = {
        "model_path": config.model.path,
        "max_turns": settings.max_turns,
        "reply_tokens": settings.reply_tokens,
    }
    wanted = given.keys() & inspect.signature(cls).parameters.keys()
    if own := sorted(wanted & settings.options.keys()):
        raise ConfigError(f"{KEY}.options.{own[0]}: comes from the run; remove it")
    options = check_options(cls, settings.options, f"{KEY}.options")
    try:
        return cast(Environment, cls(**options, **{name: given[name] for name in wanted}))
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{KEY}.options: {error}") from error


def _require_environment(cls: type, path: str) -> None:
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
