"""A ladder file: an ordinary config, and under ``ladder`` the rungs that a model climbs.

A rung names what it changes; everything else is the file's own. Each becomes an ordinary ``Config``
of an ordinary run below the ladder's folder:

* ``exit.steps`` is its ``run.steps``, and bounds it; a stage that passes over rows needs none. What
  else stands under ``exit`` is its section ``exit``, and probes of the file are asked in RL only.
* ``routes`` of a rung take the place of the file's, and principles that none of them names are not
  started in it: the principles of the file are the library that rungs choose from.
* All other keys are merged as a further config file would be.

Which model a rung starts from is known once the rung before has ended: until then ``model.path`` is
the file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safeladder.config import Config
from safeladder.config_loading import (
    Tree,
    merged,
    override_tree,
    problems_of,
    read_tree,
    validated,
)
from safeladder.config_section import Flag, Name, PositiveInt, Section
from safeladder.errors import ConfigError

KEY = "ladder"
MAX_RUNGS = 99


class CarryOver(Section):
    """What a rung takes over from the one before, beside its model. The optimizer's state it never
    does: it belongs to another objective."""

    curriculum: Flag = False
    """Where the prompt source stood, and what it knew of difficulty."""
    constraint_weights: Flag = False
    """The multipliers of constrained principles."""


class _RungKeys(Section):
    """What a rung has beside the keys of a config."""

    name: Name
    steps: PositiveInt | None = None
    """None, of a stage that passes over rows: after its epochs."""
    carry_over: CarryOver = CarryOver()


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung, as a run."""

    number: int
    """From 1."""
    name: str
    config: Config
    """With the model of the file; see ``starting_from``."""
    carry_over: CarryOver

    @property
    def folder(self) -> str:
        """Name of its run."""
        return self.config.run.name

    def starting_from(self, model: Path) -> Config:
        """The config of its run, once it is known what it starts from."""
        path = self.config.model.model_copy(update={"path": model})
        return self.config.model_copy(update={"model": path})


@dataclass(frozen=True, slots=True)
class Ladder:
    """All rungs, in order."""

    name: str
    root: Path
    rungs: tuple[Rung, ...]
    tree: Tree
    """The file as it was merged, for the ladder's folder."""

    @property
    def directory(self) -> Path:
        """``root / name``."""
        return self.root / self.name


def is_ladder(paths: Sequence[Path]) -> bool:
    """Whether one of the files has rungs. Raises ``ConfigError`` for one that cannot be read."""
    return any(KEY in read_tree(path) for path in paths)


def load_ladder(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Ladder:
    """Merge files and overrides and validate every rung. Raises ``ConfigError``, one line for each
    problem, with the name of its rung.

    A later file, or an override, reaches a rung by its name: ``ladder.m3-rl.exit.steps=20``. One
    that is not there yet can only stand in a list, so that a misspelled name makes no rung.
    """
    tree: Tree = {}
    rungs: Tree = {}
    read = [(str(path), read_tree(path)) for path in paths]
    for source, given in [*read, ("override", override_tree(overrides))]:
        file = _by_name(given, source)
        named = file.pop(KEY, {})
        if rungs and not isinstance(given.get(KEY), list):
            _require_known(named, rungs, source)
        rungs = _laid_over(rungs, named)
        tree = merged(tree, file)
    there = {name: keys for name, keys in rungs.items() if keys is not None}
    return ladder_of(tree | {KEY: there})


def ladder_of(tree: Tree) -> Ladder:
    """A ladder from its merged tree, whose rungs stand in a list or by name."""
    tree = _by_name(tree, KEY)
    by_name = tree.get(KEY)
    if not isinstance(by_name, dict) or not by_name:
        raise ConfigError(
            f"{KEY} has no rung; list some, each with `name` and `exit: {{steps: …}}`"
        )
    if len(by_name) > MAX_RUNGS:
        raise ConfigError(f"{KEY} has {len(by_name)} rungs; at most {MAX_RUNGS} are climbed")
    base = {key: value for key, value in tree.items() if key != KEY}
    name, root = _identity(base)
    problems: list[str] = []
    rungs = []
    for number, (rung_name, keys) in enumerate(by_name.items(), start=1):
        try:
            rungs.append(_rung(number, rung_name, keys, base, root / name / "rungs"))
        except ConfigError as error:
            problems += [f"{KEY}.{rung_name}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    _require_used(base, rungs)
    listed = [{"name": rung, **keys} for rung, keys in by_name.items()]
    return Ladder(name, root, tuple(rungs), base | {KEY: listed})


def _require_known(named: Tree, rungs: Tree, source: str) -> None:
    for name in named:
        if name not in rungs:
            raise ConfigError(f"{source}: {KEY}.{name}: there is no such rung ({', '.join(rungs)})")


def _require_used(base: Tree, rungs: Sequence[Rung]) -> None:
    """Refuse a principle of the file that no rung asks: a misspelled name would be one."""
    asked = {name for rung in rungs for name in rung.config.principles}
    for name in base.get("principles", {}):
        if name not in asked:
            raise ConfigError(
                f"principles.{name} is in no route of any rung, so it does nothing; add it to one "
                "or take it away"
            )


def _identity(base: Tree) -> tuple[str, Path]:
    run = base.get("run")
    if not isinstance(run, dict) or not isinstance(run.get("name"), str):
        raise ConfigError("run.name is missing: it names the ladder's folder")
    try:
        _RungKeys.model_validate({"name": run["name"]})
    except ValidationError as error:
        raise ConfigError(f"run.{problems_of(error, _RungKeys)[0]}") from None
    if "steps" in run:
        raise ConfigError("run.steps has no place beside `ladder`; each rung has its `exit.steps`")
    return run["name"], Path(str(run.get("root", "runs")))


def _rung(number: int, name: str, keys: Any, base: Tree, root: Path) -> Rung:
    if not isinstance(keys, dict):
        raise ConfigError(f"wants `key: value` lines, not {keys!r}")
    tree = merged(base, {k: v for k, v in keys.items() if k not in ("exit", "carry_over")})
    is_rl = tree.get("stage", "rl") == "rl"
    exit_keys = keys.get("exit") or {}
    if not isinstance(exit_keys, dict):
        raise ConfigError(f"exit: wants `key: value` lines, such as `steps: 40`, not {exit_keys!r}")
    if is_rl and exit_keys.get("steps") is None:
        raise ConfigError("exit.steps is missing: a rung of RL has an upper bound of steps")
    own = _own_keys(name, exit_keys.get("steps"), keys.get("carry_over"))
    if own.carry_over != CarryOver() and number == 1:
        raise ConfigError("carry_over: there is no rung before it; remove it")
    run = keys.get("run") or {}
    if not isinstance(run, dict):
        raise ConfigError(f"run: wants `key: value` lines, not {run!r}")
    if taken := sorted(run.keys() & {"name", "root", "steps"}):
        raise ConfigError(f"run.{taken[0]} is the ladder's business; remove it")
    if not is_rl:  # nothing is asked in them
        tree = {k: v for k, v in tree.items() if k not in ("probes", "tripwires") or k in keys}
    tree = _with_routes(tree, keys.get("routes", tree.get("routes", {})))
    place = {"name": f"{number:02d}-{name}", "root": str(root), "steps": own.steps or 0}
    tree = merged(tree, {"run": place})
    if conditions := {k: v for k, v in exit_keys.items() if k != "steps"}:
        tree = merged(tree, {"exit": conditions})
    return Rung(number, name, validated(tree), own.carry_over)


def _own_keys(name: str, steps: Any, carry_over: Any) -> _RungKeys:
    given = {"name": name} if steps is None else {"name": name, "steps": steps}
    try:
        return _RungKeys.model_validate(
            given if carry_over is None else given | {"carry_over": carry_over}
        )
    except ValidationError as error:
        told = problems_of(error, _RungKeys)
        lines = [f"exit.{line}" if line.startswith("steps") else line for line in told]
        raise ConfigError("\n".join(lines)) from None


def _with_routes(tree: Tree, routes: Any) -> Tree:
    """The rung's routes alone, and of the principles those that they name, or that a probe asks."""
    tree = dict(tree) | {"routes": routes}
    principles = tree.get("principles")
    if not isinstance(principles, dict) or not isinstance(routes, dict):
        return tree
    used: set[str] = set()
    for route, weights in routes.items():
        named = weights.keys() if isinstance(weights, dict) else set()
        if unknown := sorted(named - principles.keys()):
            raise ConfigError(
                f"routes.{route} names the principle {unknown[0]!r}, which is not in `principles` "
                f"of the file ({', '.join(principles) or 'empty'})"
            )
        used |= named
    used |= _asked_by_probes(tree.get("probes"))
    return tree | {"principles": {name: p for name, p in principles.items() if name in used}}


def _asked_by_probes(probes: Any) -> set[str]:
    sets = probes.get("sets") if isinstance(probes, dict) else None
    rows = sets.values() if isinstance(sets, dict) else ()
    return {row["principle"] for row in rows if isinstance(row, dict) and "principle" in row}


def _laid_over(base: Tree, overlay: Tree) -> Tree:
    """One over the other, key by key. What is null stays so: it takes a key of the file away."""
    tree = dict(base)
    for key, value in overlay.items():
        below = tree.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            tree[key] = _laid_over(below, value)
        else:
            tree[key] = value
    return tree


def _by_name(tree: Mapping[str, Any], source: str) -> Tree:
    """The tree with its rungs as name → keys, in the order in which they are climbed."""
    rungs = tree.get(KEY)
    if not isinstance(rungs, list):
        if KEY in tree and not isinstance(rungs, dict):
            raise ConfigError(f"{source}: {KEY} wants a list of rungs, not {rungs!r}")
        return dict(tree)
    by_name: Tree = {}
    for number, keys in enumerate(rungs, start=1):
        name = keys.get("name") if isinstance(keys, dict) else None
        if not isinstance(name, str):
            raise ConfigError(f"{source}: rung {number} of {KEY} has no name; give it one")
        if name in by_name:
            raise ConfigError(f"{source}: {KEY} has two rungs named {name!r}; rename one")
        by_name[name] = {key: value for key, value in keys.items() if key != "name"}
    return dict(tree) | {KEY: by_name}
