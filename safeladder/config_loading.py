"""From YAML files and ``key=value`` overrides to one ``Config``; from any mistake to a sentence.

Rules of composition, in this order:

* Files are merged from left to right, later wins; mappings merge key by key, all else is replaced.
* ``null`` takes a key away, so that its default counts again: ``service: null``.
* Options belong to their verifier: a file that names another ``verifier`` for a principle starts
  from empty ``options``. So a swap is one short file.
* Overrides such as ``learner.lr=1e-6`` come last; their values are YAML.

YAML is read as version 1.2 reads plain words: ``1e-6`` is a number, ``off`` is a string. Relative
paths stay relative to the current directory. What the keys mean stands in ``config``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from safeladder.config import Config
from safeladder.config_section import Section
from safeladder.errors import ConfigError
from safeladder.paths import PathError, is_file, read_bytes

Tree = dict[str, Any]
AnySection = TypeVar("AnySection", bound=Section)


_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9]\d*)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:\.\d+|\d+\.\d*|\d+(?=[eE]))(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)

_SECRET = re.compile(r"(?:api_?key|secret|password|token)s?$", re.IGNORECASE)
MAX_VALUES = 100_000
"""In one config file; it takes memory by aliases of aliases."""

_WANTED = {
    "model_type": "wants `key: value` lines",
    "dict_type": "wants `key: value` lines",
    "tuple_type": "wants a list, such as [a, b]",
    "string_pattern_mismatch": "wants a name of letters, digits and . _ - (at most 100)",
}
"""pydantic's kind of problem → clearer words than its own."""

_PLAIN_WORDS = {
    **{first: [(_TAG + "null", re.compile(r"(?:~|null|Null|NULL)$"))] for first in "~nN"},
    "": [(_TAG + "null", re.compile(r"$"))],
    **{first: [(_TAG + "bool", re.compile(r"(?:[Tt]rue|[Ff]alse)$"))] for first in "tTfF"},
    **{first: [(_TAG + "int", _INT), (_TAG + "float", _FLOAT)] for first in "-+.0123456789"},
    "<": [(_TAG + "merge", re.compile(r"<<$"))],
}
"""First character of a plain word → what it can mean, in the form that PyYAML keeps."""


def _count(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Values below a node, each alias written out. ``counts`` holds those of nodes that have been
    counted, and None for those around this one."""
    known = counts.get(id(node), 0)
    if known is None:
        raise yaml.constructor.ConstructorError(
            problem="a value holds an alias of itself; write it out",
            problem_mark=node.start_mark,
        )
    if known or isinstance(node, yaml.ScalarNode):
        return known or 1
    counts[id(node)] = None
    is_map = isinstance(node, yaml.MappingNode)
    below = [part for pair in node.value for part in pair] if is_map else node.value
    total = 1 + sum(_count(part, counts) for part in below)
    if total > MAX_VALUES:
        raise yaml.constructor.ConstructorError(
            problem=f"holds more than {MAX_VALUES} values, each alias written out",
            problem_mark=node.start_mark,
        )
    counts[id(node)] = total
    return total


class _Loader(yaml.SafeLoader):
    """Safe loader with the plain words of YAML 1.2, which refuses a key that stands twice."""

    yaml_implicit_resolvers = _PLAIN_WORDS

    def get_single_node(self) -> yaml.Node | None:
        """Refuses aliases that would make a value endless or huge."""
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in lines:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key_node.value!r} stands twice, first in line "
                    f"{lines[key_node.value]}",
                    problem_mark=key_node.start_mark,
                )
            lines[key_node.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe dumper that quotes every text which YAML 1.1 or 1.2 would read as something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - a class attribute is what PyYAML reads
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_PLAIN_WORDS.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_PLAIN_WORDS}
    }

    def represent_scalar(self, tag: str, value: Any, style: str | None = None) -> yaml.ScalarNode:
        """PyYAML would fold Unicode's other line breaks into blanks unless they are escaped."""
        style = '"' if set(str(value)) & set("\x85\u2028\u2029") else style
        return super().represent_scalar(tag, value, style)


def files_and_overrides(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Words of a command line: ``key=value`` is an override unless a file has just that name."""
    overrides = [word for word in words if "=" in word and not is_file(Path(word))]
    return [Path(word) for word in words if word not in overrides], overrides


def load_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """The config of a run. Raises ``ConfigError``, one line for each problem."""
    return validated(
        read_trees(paths, overrides, "a config starts with `run: {name: …, steps: …}`")
    )


def read_trees(paths: Sequence[Path], overrides: Sequence[str], start: str) -> Tree:
    """Files and overrides merged; ``start`` tells who gave nothing how to begin. Raises
    ``ConfigError``."""
    tree: Tree = {}
    for path in paths:
        tree = merged(tree, read_tree(path))
    if not tree:
        raise ConfigError(f"{', '.join(map(str, paths))}: holds no key; {start}")
    return merged(tree, override_tree(overrides))


def validated(tree: Tree) -> Config:
    """A whole tree as a config. Raises ``ConfigError``, one line for each problem."""
    return validated_as(Config, tree)


def validated_as(model: type[AnySection], tree: Tree) -> AnySection:
    """A whole tree as such a section. Raises ``ConfigError``, one line for each problem."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(problems_of(error, model))) from None


def problems_of(error: ValidationError, model: type[Section] = Config) -> list[str]:
    """One sentence for each problem."""
    schema = model.model_json_schema()
    details = error.errors(include_url=False)
    return list(dict.fromkeys(_sentence(detail, schema) for detail in details))


def resolved_yaml(config: Config) -> str:
    """The whole tree with every default written out; loads back to an equal ``Config``."""
    return to_yaml(config.model_dump(mode="json"))


def to_yaml(tree: Tree) -> str:
    """YAML text that ``load_config`` and readers of YAML 1.1 understand alike."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def config_hash(config: Config) -> str:
    """Hex SHA-256 of the canonical JSON (sorted keys, no spaces) of the resolved tree."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def shareable(config: Config) -> Tree:
    """The resolved tree for other eyes: ``***`` for text under a key that sounds like a secret.

    Secrets do not belong into a config at all; this is the second line of defense.
    """
    tree: Tree = _masked(config.model_dump(mode="json"), is_secret=False)
    return tree


def json_schema() -> Tree:
    """JSON Schema of a complete config, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def read_tree(path: Path) -> Tree:
    """The keys of one file. Raises ``ConfigError``."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        hint = "" if path.suffix else f"; an override is written {path}=value"
        raise ConfigError(f"{path}: there is no such config file{hint}") from None
    except PathError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); name a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no text file in UTF-8; name a YAML file") from None
    tree = _parse(text, str(path))
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}:1: holds a {type(tree).__name__}, not `key: value` lines")
    return tree or {}


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{source}:{line}: {error.problem or 'is not YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"{source}:1: is not YAML ({told})") from None


def override_tree(overrides: Sequence[str]) -> Tree:
    """One tree of all ``a.b=value`` overrides; the last of two that meet wins."""
    tree: Tree = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        *parents, leaf = dotted.strip().split(".")
        if not equals or not all((*parents, leaf)):
            raise ConfigError(f"{override!r} is no override: write it as section.key=value")
        place = tree
        for key in parents:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[leaf] = _parse(text, f"override {dotted}")
    return tree


def merged(base: Mapping[str, Any], overlay: Mapping[str, Any], path: tuple[str, ...] = ()) -> Tree:
    """``overlay`` over ``base``, by the rules of composition."""
    tree = dict(base)
    if len(path) == 2 and path[0] == "principles":
        verifier = overlay.get("verifier", base.get("verifier"))
        if verifier != base.get("verifier"):
            tree.pop("options", None)
    for key, value in overlay.items():
        if value is None:
            tree.pop(key, None)
        elif isinstance(value, dict):
            below = tree.get(key)
            tree[key] = merged(below if isinstance(below, dict) else {}, value, (*path, key))
        else:
            tree[key] = value
    return tree


def _sentence(detail: ErrorDetails, schema: Tree) -> str:
    """One problem of pydantic's as: dotted key, what is wrong, the value, the way out."""
    where = tuple(part for part in detail["loc"] if "[" not in str(part))  # members of a union
    value = detail["input"]
    dotted = ".".join(map(str, where))
    if detail["type"] == "extra_forbidden":
        return f"{dotted} is not a key of the config; {_nearest(where, schema)}"
    if detail["type"] == "missing":
        return f"{dotted} is missing: every config must give it"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    wanted = _WANTED.get(detail["type"], f"{message[0].lower()}{message[1:]}")
    return f"{dotted}: {wanted}, not {_shown(value)}"


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."


def _masked(value: Any, *, is_secret: bool) -> Any:
    if isinstance(value, list):
        return [_masked(item, is_secret=is_secret) for item in value]
    if isinstance(value, dict):
        return {
            key: _masked(item, is_secret=is_secret or bool(_SECRET.search(str(key))))
            for key, item in value.items()
        }
    return "***" if is_secret and isinstance(value, str) else value


def _nearest(where: tuple[int | str, ...], schema: Tree) -> str:
    """The closest valid key beside a wrong one, else one of that name elsewhere, else all."""
    named = where[0] in ("principles", "routes", "fleets")
    parts = ["*" if named and i == 1 else k for i, k in enumerate(where[:-1])]
    parent = ".".join(str(part) for part in parts if not isinstance(part, int))
    dotted_keys = list(_dotted_keys(schema, schema, ""))
    beside = [key.rpartition(".")[2] for key in dotted_keys if key.rpartition(".")[0] == parent]
    wrong = str(where[-1])
    if close := difflib.get_close_matches(wrong, beside, n=1):
        return f"did you mean {'.'.join(map(str, (*where[:-1], close[0])))}?"
    elsewhere = [key for key in dotted_keys if key.rpartition(".")[2] == wrong]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"valid here: {', '.join(sorted(beside)) or 'nothing'}"


def _dotted_keys(schema: Tree, node: Tree, prefix: str) -> Iterator[str]:
    """All dotted keys of a JSON Schema; ``*`` stands for a name that the user chooses."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    items = [node["items"]] if "items" in node else []
    for choice in (*node.get("anyOf", ()), *node.get("oneOf", ()), *items):
        yield from _dotted_keys(schema, choice, prefix)
    children = dict(node.get("properties", {}))
    for named in node.get("patternProperties", {}).values():
        children["*"] = named
    for name, child in children.items():
        dotted = f"{prefix}.{name}" if prefix else name
        if name != "*":
            yield dotted
        yield from _dotted_keys(schema, child, dotted)
