"""From configuration to verifier: import by name, check the options, construct.

Owns the error messages of ``principles.<name>.verifier`` and ``principles.<name>.options``. It
knows no verifier: a class named in the configuration is found by its import path, and the type
hints of its constructor are the schema of its options.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, cast, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError, SafeladderError
from safeladder.ports import Verifier

_PORT = ("start", "score", "close")
_PRINCIPLE = "principle"
_TIMEOUT = "principle_timeout_s"
_GIVEN = (_PRINCIPLE, _TIMEOUT)
"""What a constructor gets from the system; users cannot set it. The second only if it asks for it:
``principles.<name>.timeout_s``, for verifiers that have deadlines of their own inside it."""
_COLLECTING = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def verifier_version(code_version: str, options: Mapping[str, Any]) -> str:
    """Code version and a short hash of the options: equal options, equal version.

    >>> verifier_version("1", {"a": 1, "b": 2}) == verifier_version("1", {"b": 2, "a": 1})
    True
    >>> verifier_version("1", {"a": 1}) == verifier_version("1", {"a": 2})
    False
    """
    text = json.dumps(options, sort_keys=True, ensure_ascii=False, default=str)
    return f"{code_version}+{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def load_object(path: str, key: str = "verifier") -> Any:
    """The object behind ``module:Name``. ``key`` is the dotted configuration key of messages.

    Raises ``ConfigError`` if the path is malformed, the module does not import or lacks the name.

    >>> load_object("json:dumps")([1])
    '[1]'
    """
    module_name, separator, attribute = path.partition(":")
    if not (module_name and separator and attribute):
        raise ConfigError(f"{key}: {path!r} is not of the form `module:Class`")
    module = _import(module_name, key, path)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [name for name, value in vars(module).items() if inspect.isclass(value)]
        hint = _nearest(attribute, public)
        raise ConfigError(f"{key}: {module_name} has no {attribute!r}{hint}") from None


def build_verifier(principle: str, config: PrincipleConfig) -> Verifier:
    """Construct the verifier of a principle: ``Class(principle=principle, **options)``.

    Raises ``ConfigError`` naming the dotted key, the fault and the nearest valid choice.
    """
    where = f"principles.{principle}"
    if config.verifier is None:
        raise ConfigError(f"{where}.verifier: not set; name a `module:Class` to score with")
    cls = load_object(config.verifier, f"{where}.verifier")
    _require_port(cls, f"{where}.verifier", config.verifier)
    _require_principle(cls, f"{where}.verifier", config.verifier)
    options = check_options(cls, config.options, f"{where}.options")
    if _TIMEOUT in _parameters(cls, f"{where}.verifier"):
        options[_TIMEOUT] = config.timeout_s
    try:
        verifier = cast(Verifier, cls(principle=principle, **options))
    except SafeladderError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}.options: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{where}.verifier: the constructor of {config.verifier!r} fails with {_said(error)}"
        ) from error
    _require_identity(verifier, f"{where}.verifier", config.verifier)
    return verifier


def _require_principle(cls: Any, key: str, path: str) -> None:
    """A verifier is constructed by keywords: ``principle`` and its options."""
    parameters = _parameters(cls, key).values()
    names = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    fixed = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if fixed or not (takes_any or _PRINCIPLE in names):
        fault = f"takes {fixed[0]!r} by position only" if fixed else "takes no `principle`"
        raise ConfigError(
            f"{key}: the constructor of {path!r} {fault}; "
            "write `def __init__(self, *, principle: str, ...)`"
        )


def _require_identity(verifier: Verifier, key: str, path: str) -> None:
    """Name and version are asked for with every verdict, so they must not fail."""
    for name in ("name", "version"):
        try:
            value = getattr(verifier, name)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{key}: property {name!r} of {path!r} fails with {_said(error)}; does its "
                "__init__ call super().__init__(principle, options)?"
            ) from error
        if not isinstance(value, str):
            raise ConfigError(f"{key}: property {name!r} of {path!r} must be text, got {value!r}")


def _parameters(cls: Any, key: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(cls).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: the constructor cannot be read: {error}") from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def check_options(cls: Any, options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The options, validated against the type hints of the constructor of ``cls``.

    Raises ``ConfigError`` naming ``key.option`` for an unknown, missing or ill-typed option.
    """
    parameters = _parameters(cls, key)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [n for n, p in parameters.items() if n not in _GIVEN and p.kind not in _COLLECTING]
    try:
        hints = get_type_hints(cls.__init__, include_extras=True)
    except Exception as error:
        raise ConfigError(
            f"{key}: the type hints of {cls.__name__}.__init__ cannot be read: {_said(error)}"
        ) from error
    checked = {}
    for name, value in options.items():
        if name not in names and (not takes_any or name in _GIVEN):
            raise ConfigError(f"{key}.{name}: unknown option{_nearest(name, names)}")
        checked[name] = _checked(value, hints.get(name, Any), f"{key}.{name}")
    for name in names:
        if name not in checked and parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(f"{key}.{name}: missing; {cls.__name__} needs it")
    return checked


def _checked(value: Any, hint: Any, key: str) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        at = "".join(f".{part}" for part in first["loc"])
        raise ConfigError(f"{key}{at}: {first['msg']}, got {first['input']!r}") from None
    except PydanticUserError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{key}: the type hint {hint!r} cannot be checked: {reason}") from error


def _import(module_name: str, key: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{key}: {path!r} needs the package {missing!r}, which is not installed"
            ) from error
        is_verifier = key.startswith("principles.")
        hint = _nearest(module_name, _known_modules()) if is_verifier else "; is it installed?"
        raise ConfigError(f"{key}: no module {module_name!r}{hint}") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{key}: importing {module_name!r} fails with {_said(error)}") from error


def _require_port(cls: Any, key: str, path: str) -> None:
    if not inspect.isclass(cls):
        raise ConfigError(f"{key}: {path!r} is not a class")
    lacking = [name for name in _PORT if not inspect.iscoroutinefunction(getattr(cls, name, None))]
    lacking += [name for name in ("name", "version") if not hasattr(cls, name)]
    if lacking:
        raise ConfigError(
            f"{key}: {path!r} is not a verifier: it lacks async start, score, close or the "
            f"properties name, version (missing: {', '.join(lacking)})"
        )
    if abstract := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ConfigError(f"{key}: {path!r} does not define {', '.join(abstract)}")


def _known_modules() -> list[str]:
    package = importlib.import_module("rewards")
    return [f"rewards.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


def _nearest(word: str, choices: Iterable[str]) -> str:
    ordered = sorted(name for name in choices if not name.startswith("_"))
    close = difflib.get_close_matches(word, ordered, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose from {', '.join(ordered)}" if ordered else ""
