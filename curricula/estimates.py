"""How often the policy of this moment passes: of each prompt, and of prompts like it.

An outcome of policy version u weighs decay^(v - u) at version v. That is a property of the outcome,
not of when it is heard: late outcomes of an old version weigh what they would have weighed in time,
and the order of arrival does not matter.

A prompt is predicted by its own outcomes and, as far as these are few, by those of its kind: its
types if it has some (the product of how often each is met), else its label and bucket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PRIOR = 0.5
"""Predicted of what nothing is known about."""
PRIOR_SAMPLES = 2.0
"""Own siblings that weigh as much as what is known of the kind."""

Shares = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


@dataclass(slots=True)
class DecayedCount:
    """Passes among judged siblings, as weighted at ``version``."""

    passed: float = 0.0
    judged: float = 0.0
    version: int = 0

    def add(self, version: int, passed: float, judged: float, decay: float) -> None:
        """Note an outcome of a policy version, newer or older than those before."""
        if version > self.version:
            scale = decay ** (version - self.version)
            self.passed, self.judged, self.version = (
                self.passed * scale,
                self.judged * scale,
                version,
            )
        weight = decay ** (self.version - version)
        self.passed += weight * passed
        self.judged += weight * judged

    def at(self, version: int, decay: float) -> tuple[float, float]:
        """(passed, judged) as weighted at a version that is not older than any outcome."""
        scale = decay ** (version - self.version)
        return self.passed * scale, self.judged * scale


class Kind(NamedTuple):
    """What a prompt has in common with others."""

    label: str
    bucket: str
    types: tuple[str, ...]


class Estimates:
    """Of all prompts of a run. ``kinds`` has each distinct kind once, ``kind_of`` [rows] says which
    one a row is of."""

    def __init__(self, kinds: Sequence[Kind], kind_of: Rows, decay: float) -> None:
        self._kinds = kinds
        self._kind_of = kind_of
        self._decay = decay
        self.version = 0
        """Of the policy that is predicted."""
        self._passed = np.zeros(len(kind_of))
        self._judged = np.zeros(len(kind_of))
        self._noted_at = np.zeros(len(kind_of), np.int32)
        """[rows] as ``DecayedCount``, for each prompt."""
        self._kind_counts: dict[str, DecayedCount] = {}
        """``label/<label>`` or ``bucket/<label>/<bucket>`` → outcomes."""
        self._types: dict[str, DecayedCount] = {}
        self._priors = self._kind_priors()

    def note(
        self,
        row: int,
        version: int,
        passed: int,
        judged: int,
        by_type: Sequence[tuple[str, tuple[int, int]]] = (),
    ) -> None:
        """Note a group's outcome. Without ``by_type`` (each type and its (judged, passed)) the
        types share it evenly: each is met as often as makes the product come out right."""
        kind = self._kinds[self._kind_of[row]]
        own = self._own(row)
        own.add(version, passed, judged, self._decay)
        self._passed[row], self._judged[row], self._noted_at[row] = (
            own.passed,
            own.judged,
            own.version,
        )
        for name in (_label(kind), _bucket(kind)):
            self._kind_counts.setdefault(name, DecayedCount()).add(
                version, passed, judged, self._decay
            )
        if not by_type and kind.types:
            met = judged * (passed / judged) ** (1 / len(kind.types))
            for one in kind.types:
                self._note_type(one, version, met, judged)
        for one, (asked, was_met) in by_type:
            self._note_type(one, version, was_met, asked)

    def _note_type(self, name: str, version: int, met: float, judged: int) -> None:
        self._types.setdefault(name, DecayedCount()).add(version, met, judged, self._decay)

    def go_on(self, version: int) -> None:
        """Predict the policy of this version from now on."""
        self.version = version
        self._priors = self._kind_priors()

    def predict(self, row: int) -> float:
        """Share of passes expected of a row."""
        return _shrunk(self._at(self._own(row)), float(self._priors[self._kind_of[row]]))

    def predict_all(self) -> Shares:
        """[rows]"""
        scale = self._decay ** (self.version - self._noted_at).astype(np.float64)
        prior = self._priors[self._kind_of]
        passed = self._passed * scale + PRIOR_SAMPLES * prior
        return passed / (self._judged * scale + PRIOR_SAMPLES)

    def share_of(self, label: str, bucket: str) -> tuple[float, float]:
        """(share of passes, weight of the outcomes that it rests on)."""
        name = _bucket(Kind(label, bucket, ()))
        passed, judged = self._at(self._kind_counts.get(name, DecayedCount()))
        return (passed / judged if judged else PRIOR), judged

    def dump(self, ids: Sequence[str]) -> dict[str, Any]:
        """Plain data for another run, as weighted now; ``ids`` [rows] are those of the prompts.
        ``TypeDifficulty.load`` reads the types of it too."""
        known = map(int, np.flatnonzero(self._judged))
        return {
            "version": self.version,
            "decay": self._decay,
            "rows": {ids[row]: list(self._at(self._own(row))) for row in known},
            "kinds": self._dumped(self._kind_counts),
            "types": self._dumped(self._types),
        }

    def _dumped(self, counts: Mapping[str, DecayedCount]) -> dict[str, list[float]]:
        return {name: list(self._at(count)) for name, count in sorted(counts.items())}

    def load(self, data: Mapping[str, Any], ids: Sequence[str]) -> None:
        """Take over what another run knew, as if its last version were ours of now. Prompts that
        this run does not have are passed over."""
        for row, identity in enumerate(ids):
            if identity in data["rows"]:
                self._passed[row], self._judged[row] = data["rows"][identity]
                self._noted_at[row] = self.version
        for part, counts in (("kinds", self._kind_counts), ("types", self._types)):
            for name, (passed, judged) in data[part].items():
                counts[name] = DecayedCount(passed, judged, self.version)
        self._priors = self._kind_priors()

    def _own(self, row: int) -> DecayedCount:
        return DecayedCount(
            float(self._passed[row]), float(self._judged[row]), int(self._noted_at[row])
        )

    def _at(self, count: DecayedCount) -> tuple[float, float]:
        return count.at(self.version, self._decay)

    def _known(self, count: DecayedCount | None, prior: float) -> float:
        return prior if count is None else _shrunk(self._at(count), prior)

    def _kind_priors(self) -> Shares:
        return np.array([self._prior(kind) for kind in self._kinds])

    def _prior(self, kind: Kind) -> float:
        counts = self._kind_counts
        label = self._known(counts.get(_label(kind)), PRIOR)
        bucket = self._known(counts.get(_bucket(kind)), label)
        if not kind.types:
            return bucket
        each = bucket ** (1 / len(kind.types))
        return math.prod(self._known(self._types.get(one), each) for one in kind.types)


def _shrunk(counted: tuple[float, float], prior: float) -> float:
    passed, judged = counted
    return (passed + PRIOR_SAMPLES * prior) / (judged + PRIOR_SAMPLES)


def _label(kind: Kind) -> str:
    return f"label/{kind.label}"


def _bucket(kind: Kind) -> str:
    return f"bucket/{kind.label}/{kind.bucket}"
