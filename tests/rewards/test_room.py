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

import rewards
from rewards.judging import SampleVerifier

ROOT = Path(__file__).parents[2]
MODULES = [f"rewards.{module.name}" for module in pkgutil.iter_modules(rewards.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_table_lists_every_public_verifier() -> None:
    for name in MODULES:
        for cls_name, cls in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            is_ours = cls.__module__ == name and issubclass(cls, SampleVerifier)
            if is_ours and not inspect.isabstract(cls):
                assert f"``{name}:{cls_name}``" in (rewards.__doc__ or "")


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = ["torch", "ray", "vllm", "deepspeed", "grpc", "wandb", "transformers"]
    heavy += ["httpx", "math_verify", "sympy"]
    code = (
        f"import importlib, sys\nfor name in {MODULES!r}: importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
