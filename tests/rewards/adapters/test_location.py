"""Functions that are not there, or do not import: one sentence under their key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rewards.adapters.location import locate, require_name
from safeladder.errors import ConfigError
from tests.rewards.adapters.running import FUNCTIONS, built, scored

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nowhere_at_all\ndef reward(): ...", "ModuleNotFoundError"),
        ("import sys\ndef reward(): ...\nsys.exit('no GPU\\nhere')", "SystemExit: no GPU here$"),
        ("reward = 3", "TypeError"),
        ("def rewards(): ...\ndef f():\n    reward = 3", "AttributeError"),
    ],
)
def test_a_function_that_does_not_import_is_an_error_of_its_key(
    source: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(source)
    verifier = built("verl:VerlReward", f"{file}:reward")
    with pytest.raises(ConfigError, match=rf"^principles\.rule\.options\.function: .*{words}"):
        asyncio.run(scored(verifier, []))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("reward", "form `package.module:name`"),
        ("a/b.py:", "form `package.module:name`"),
        ("nowhere/reward.py:f", "no file"),
        ("nowhere_at_all.rewards:f", "no Python file of the module"),
        ("rewards.nowhere:f", "no Python file of the module"),
    ],
)
def test_a_function_that_is_not_there_is_named_before_anything_starts(
    function: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        locate(function)
    with pytest.raises(ConfigError, match=r"principles\.rule\.options\.function"):
        built("verl:VerlReward", "missing.py:f")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "def reward_words(): ...\ndef other(): ...",
            "no 'reward_word'; did you mean 'reward_words'.",
        ),
        ("def zzz(): ...\ndef yyy(): ...\ndef _x(): ...", "it defines zzz, yyy$"),
        ("x = 1", "it defines no function"),
        ("def f(:\n", r"rf\.py:1: is no Python"),
        ("\0", r"rf\.py.*: is no Python"),
    ],
)
def test_a_name_that_a_file_lacks_is_refused_with_the_nearest(
    source: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "rf.py"
    file.write_text(source)
    with pytest.raises(ConfigError, match=rf"^principles\.rule\.options\.function: .*{words}"):
        built("verl:VerlReward", f"{file}:reward_word")


@pytest.mark.parametrize(
    "source",
    [
        "from somewhere import *",
        "from somewhere import f",
        "import somewhere as f",
        "f = print",
        "if True:\n    async def f(): ...",
        "for f in [print]: ...",
        "globals()['f'] = print",
        "def __getattr__(name): return print",
        "import sys\nsys.modules[__name__].f = print",
    ],
)
def test_a_name_that_a_file_may_bind_is_left_to_its_import(source: str, tmp_path: Path) -> None:
    require_name(tmp_path, source.encode(), "f")


def test_functions_are_found_without_importing_them() -> None:
    assert locate("tests.rewards.samples:sample")[0] == Path(__file__).parents[1] / "samples.py"
    assert locate("tests.rewards:x")[0].name == "__init__.py"
    file, path = locate(f"{FUNCTIONS}/trl_rewards.py:reward_words")
    assert path == f"{file}:reward_words"
