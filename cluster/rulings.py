"""What the coordinator's two desks decide about a group or the run, for the coordinator to do."""

from __future__ import annotations

from typing import Protocol

from cluster.groups import Group
from cluster.protocol import Command
from cluster.transitions import DropReason


class Rulings(Protocol):
    """The coordinator, as its desks see it."""

    def emit(self, command: Command) -> None:
        """Add a command."""
        ...

    def admit(self, group: Group) -> None:
        """All that training needs is there."""
        ...

    def retry(self, group: Group, detail: str) -> None:
        """The attempt failed; another one follows unless they are spent."""
        ...

    def drop(self, group: Group, reason: DropReason, detail: str) -> None:
        """The group is not worth going on with."""
        ...

    def fail(self, text: str, exit_code: int) -> None:
        """The run cannot go on."""
        ...
