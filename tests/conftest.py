"""What holds for all tests: none leaves the environment of the process other than it found it.

A verb of the command line prepares Ray's variables for the process that it is; a test that calls it
shares that process with tests that start a Ray of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)
