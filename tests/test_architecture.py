"""The rules of the house that no linter knows. They read the source; nothing heavy is imported."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("safeladder", "vision", "rewards", "actors", "learners", "curricula", "evals", "cluster")
HEAVY = ("torch", "ray", "vllm", "deepspeed", "grpc", "wandb", "transformers", "openrlhf")
MAX_LINES = 400
LONG_FOR_A_REASON: dict[str, str] = {}
"""File → why it may be longer."""
ROLES = {
    "actors/rollout.py": "RolloutActor",
    "actors/verifier.py": "VerifierActor",
    "actors/reference.py": "ReferenceActor",
    "learners/learner.py": "Learner",
    "cluster/monitor.py": "Monitor",
    "cluster/role_host.py": "StoreOwner",
}
DOORS = {
    "bm25s": r"actors/deliberation/corpus\.py",
    "vllm": r"actors/vllm_\w+\.py",
    "deepspeed": r"learners/deepspeed_engine\.py",
    "openrlhf": r"learners/packing\.py",
    "ray": r"cluster/(remote|role_host|fleet)\.py",
    "grpc": r"cluster/verifier_\w+\.py",
    "wandb": r"cluster/monitor\.py",
    "pyarrow": r"curricula/tables\.py",
    "datasets": r"curricula/tables\.py",
}


def sources(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path.relative_to(ROOT) for path in found if "_pb2" not in path.name]


PRODUCT = sources(*ROOMS, "demo", "benchmarks")


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Top-level names of all packages that a module imports anywhere."""
    return frozenset(_imported(tree(path)))


def _imported(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def loaded_by(code: str) -> set[str]:
    """Packages in memory after some code ran in a fresh process."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(n for n in sys.modules if '.' not in n)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_no_source_file_is_long() -> None:
    lengths = {str(p): len((ROOT / p).read_text().splitlines()) for p in sources(*ROOMS, "tests")}
    assert {p: n for p, n in lengths.items() if n > MAX_LINES and p not in LONG_FOR_A_REASON} == {}


def test_no_file_is_named_after_nothing() -> None:
    idle = {"utils", "util", "helpers", "common", "base", "types", "misc"}
    assert [p for p in PRODUCT if p.stem in idle] == []


def test_every_module_says_what_it_is() -> None:
    assert [p for p in PRODUCT if not ast.get_docstring(tree(p))] == []


@pytest.mark.parametrize(("path", "name"), ROLES.items())
def test_every_public_method_of_a_role_is_a_coroutine(path: str, name: str) -> None:
    (role,) = (n for n in tree(Path(path)).body if isinstance(n, ast.ClassDef) and n.name == name)
    blocking = [
        method.name
        for method in role.body
        if isinstance(method, ast.FunctionDef)
        and not method.name.startswith("_")
        and not any(isinstance(d, ast.Name) and d.id == "property" for d in method.decorator_list)
    ]
    assert blocking == []


@pytest.mark.parametrize("package", DOORS)
def test_a_heavy_package_has_one_door(package: str) -> None:
    outside = [p for p in sources(*ROOMS) if package in imported(p)]
    assert [p for p in outside if not re.fullmatch(DOORS[package], p.as_posix())] == []


def test_the_vocabulary_and_the_rewards_load_nothing_heavy() -> None:
    names = [".".join(p.with_suffix("").parts) for p in sources("safeladder", "rewards")]
    assert loaded_by(f"import {', '.join(names)}").isdisjoint(HEAVY)


def test_the_command_line_loads_nothing_heavy() -> None:
    assert loaded_by("import cluster.cli").isdisjoint(HEAVY)


def test_the_verifier_service_loads_no_model_library_and_no_ray() -> None:
    assert loaded_by("import cluster.verifier_service") & set(HEAVY) == {"grpc"}


def test_recipes_of_the_makefile_are_short() -> None:
    recipes = re.findall(r"^([\w-]+):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert len(recipes) > 10
    assert [name for name, lines in recipes if lines.count("\n") > 3] == []
