"""Says so, and in the end gives up, when hardly any group is trained any more."""

from __future__ import annotations

from collections import Counter

from cluster.protocol import Alert, Command, Fail
from cluster.transitions import DropReason
from safeladder.errors import SafeladderError, VerifierUnavailableError

ALERT_DROPS_PER_GROUP = 10
"""Alert when so many groups are dropped for each one that a step needs, since the last Train."""
FAIL_DROPS_PER_GROUP = 50
"""Fail when so many are."""


class DropWatch:
    """Drops since the last ``Train``."""

    def __init__(self, groups_per_step: int) -> None:
        self._groups_per_step = groups_per_step
        self._drops: Counter[DropReason] = Counter()

    def step_begins(self) -> None:
        """A step has its groups: all is well."""
        self._drops.clear()

    def add(self, reason: DropReason, detail: str) -> Command | None:
        """Note a drop; what is to be done about so many, or None."""
        self._drops[reason] += 1
        num_drops = self._drops.total()
        shares = ", ".join(f"{count} {reason}" for reason, count in self._drops.most_common())
        text = f"{num_drops} groups were dropped since the last step ({shares}); the last: {detail}"
        if num_drops == ALERT_DROPS_PER_GROUP * self._groups_per_step:
            return Alert("drops", text)
        if num_drops == FAIL_DROPS_PER_GROUP * self._groups_per_step:
            is_invalid = self._drops.most_common(1)[0][0] is DropReason.INVALID
            cause = VerifierUnavailableError if is_invalid else SafeladderError
            return Fail(text, cause.exit_code)
        return None
