"""The room as a whole: examples that run, light imports, a complete table."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import rewards.adapters
from rewards.judging import SampleVerifier

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
MODULES = [f"rewards.adapters.{m.name}" for m in pkgutil.iter_modules(rewards.adapters.__path__)]
CHILD = ["worker", "shapes", "isolation", "syscalls"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_table_lists_every_adapter() -> None:
    for name in MODULES:
        for cls_name, cls in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            is_ours = cls.__module__ == name and issubclass(cls, SampleVerifier)
            if is_ours and not inspect.isabstract(cls):
                assert f"``{name}:{cls_name}``" in (rewards.adapters.__doc__ or "")


def loaded_by(names: list[str]) -> set[str]:
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_adapters_loads_nothing_heavy() -> None:
    heavy = {"torch", "ray", "vllm", "deepspeed", "grpc", "wandb", "transformers", "httpx"}
    assert loaded_by(MODULES).isdisjoint({*heavy, "aiohttp", "fastapi", "math_verify"})


def test_the_child_needs_the_standard_library_only() -> None:
    found = loaded_by([f"rewards.adapters.{name}" for name in CHILD])
    # What an environment loads by itself, before any import of ours:
    of_the_environment = {"sitecustomize", "torchvision_beside_cpu_torch"}
    assert found - set(sys.stdlib_module_names) - {"rewards", "__main__"} - of_the_environment <= {
        name for name in found if name.startswith(("_", "distutils"))
    }


@pytest.mark.parametrize("path", sorted((ROOT / "rewards/adapters").glob("*.py")))
def test_nothing_is_pickled(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert "import pickle" not in source
    assert "multiprocessing" not in source
