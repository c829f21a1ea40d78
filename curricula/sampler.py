"""Chooses what is asked next: labels by exact shares, buckets by the schedule, then the prompt that
was asked least, in an order that the seed decides.

Nothing is drawn by chance. A draw follows from (prompts, config, seed), from the draws before it,
and from the outcomes that count by now; so the same seed and the same outcomes give the same draws.
Outcomes count from the end of the step that they belong to, in order of key, however they arrived:
between two steps the policy that is asked does not change either. The state is never stored: it is
what the ledger's surviving draws and outcomes make of it (``restore``).

Draws are recorded by whoever calls ``draw``, before anything is done with them, and are never taken
back: a group that is asked again is asked the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curricula.buckets import (
    NO_BUCKET,
    BucketOfRow,
    bucket_names,
    column_buckets,
    difficulty_buckets,
    kinds_of,
    partners,
    types_of,
)
from curricula.estimates import Estimates, Rows
from curricula.pools import Pools, Zones
from curricula.prompts import PromptOrder
from curricula.quotas import Quotas
from safeladder.curriculum_config import DIFFICULTY, CurriculumConfig
from safeladder.draws import Draw, DrawHistory, Outcome, Passes
from safeladder.errors import ConfigError, NotResumableError
from safeladder.records import GroupKey, Prompt

FORMAT = 1
"""Of ``dump``."""
MIN_JUDGED = 16.0
"""A stage is not left on fewer judged siblings, as weighted now."""

_ALL = "all"
_IN_WINDOW, _TOO_HARD, _TOO_EASY = range(3)
_PLACES = ("in window", "too hard", "too easy")


class Sampler:
    """Draws of one run. ``weights`` [rows] says how often a row is asked against others."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        config: CurriculumConfig,
        *,
        seed: int,
        shuffle: bool = True,
        mix: Mapping[str, float] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._plain = PromptOrder(prompts, seed, shuffle)
        self._prompts = prompts
        self._config = config
        self._shuffle = shuffle
        self._mix = dict(mix or {})
        self._seed = int.from_bytes(hashlib.sha256(f"{seed}".encode()).digest()[:8], "big")
        self._weights = np.ones(len(prompts)) if weights is None else np.array(weights, np.float64)
        self._carried: Mapping[str, Any] | None = None
        self._names = bucket_names(config)
        self._buckets = column_buckets(config, prompts)
        self._kinds, self._kind_of = kinds_of(config, prompts, self._buckets)
        self._rows_of = _rows_by_share(prompts, self._mix)
        self._partners = partners(config, prompts)
        self._labels = Quotas(self._mix or {_ALL: 1.0})
        rest = config.rehearsal
        self._reasons = Quotas({"focus": 1 - rest, "rehearsal": rest})
        self._start()

    def _start(self) -> None:
        self._estimates = Estimates(self._kinds, self._kind_of, self._config.decay)
        if self._carried is not None:
            self._estimates.load(self._carried, [prompt.id for prompt in self._prompts])
        self._pools = Pools(self._rows_of, self._weights, self._seed if self._shuffle else None)
        self._counts: Counter[tuple[str, str]] = Counter()
        """(share, why) → draws."""
        self._owed: list[int] = []
        """Rows that belong to the newest draw, to be asked next."""
        self._living: dict[GroupKey, Draw] = {}
        self._waiting: list[Outcome] = []
        """Outcomes that do not count yet."""
        self.stage = 0
        """Bucket that ``staged`` is at."""
        self._stage_since = 0
        self._follow_policy()

    @property
    def version(self) -> int:
        """Steps whose outcomes count."""
        return self._estimates.version

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all that decides a draw but the outcomes."""
        parts = {
            "order": self._plain.digest,
            "mix": self._mix,
            "curriculum": self._config.model_dump(mode="json", exclude={"carried"}),
            "carried": self._carried,
            "weights": hashlib.sha256(self._weights.tobytes()).hexdigest(),
            "partners": sorted(self._partners.items()),
            "kinds": [self._kinds, hashlib.sha256(self._kind_of.tobytes()).hexdigest()],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    # ---- draws --------------------------------------------------------------------------------

    def next_key(self, key: GroupKey | None) -> GroupKey:
        """The place after ``key``; a pass is as many places as there are prompts."""
        return self._plain.next_key(key)

    def prompt(self, key: GroupKey) -> Prompt:
        """What was drawn for a group that has not ended."""
        return self._prompts[self._living[key].row]

    def draw(self, key: GroupKey) -> Draw:
        """Choose the prompt of the next new place."""
        if self._owed:
            row = self._owed.pop(0)
            share, why = self._share_of(row), "together"
        else:
            share = self._labels.next(self._sums())
            why, row = self._choose(share)
            self._owed = list(self._partners.get(row, ()))
        prompt = self._prompts[row]
        made = Draw(
            row=row,
            prompt=prompt.id,
            label=prompt.route,
            bucket=self.bucket_of(row),
            why=why,
            predicted=self._estimates.predict(row),
            version=self.version,
        )
        self._living[key] = made
        self._pools.note(row)
        self._counts[share, why] += 1
        return made

    def end(self, key: GroupKey, step: int, passes: Passes | None) -> Draw:
        """A group has ended; ``passes`` count in draws once ``step`` is learned from. Returns what
        it was."""
        draw = self._living.pop(key)
        if passes is not None:
            self._waiting.append(Outcome(step, key, draw.row, passes))
        return draw

    def learn(self, step: int) -> None:
        """The step is committed: its outcomes count from now on."""
        due = [one for one in self._waiting if one.step <= step]
        self._waiting = [one for one in self._waiting if one.step > step]
        self._fold(step, due)
        self._follow_policy()

    def restore(self, history: DrawHistory) -> None:
        """Stand where a sampler stands that made these draws and learned of these outcomes.

        Raises ``NotResumableError`` if a recorded row is another prompt by now.
        """
        self._start()
        for key, draw in history.living.items():
            row = draw.row
            if row >= len(self._prompts) or self._prompts[row].id != draw.prompt:
                raise NotResumableError(
                    f"{key} was asked {draw.prompt!r}, which is not row {row} of data.train any "
                    "more; put the data back"
                )
            self._living[key] = draw
        for row, times in history.asked.items():
            self._pools.note(row, times)
        for (label, why), number in history.reasons.items():
            self._counts[label if self._mix else _ALL, why] += number
        if history.newest:
            chosen, *since = history.newest
            self._owed = list(self._partners.get(chosen, ())[len(since) :])
        by_step: dict[int, list[Outcome]] = {}
        for one in history.outcomes:
            by_step.setdefault(one.step, []).append(one)
        for step in range(1, history.version + 1):
            self._fold(step, by_step.pop(step, []))
        self._waiting = [one for later in by_step.values() for one in later]
        self._follow_policy()

    # ---- state for another run ----------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """What is known of the prompts, as plain JSON data."""
        ids = [prompt.id for prompt in self._prompts]
        return {"format": FORMAT, **self._estimates.dump(ids)}

    def load(self, data: Any) -> None:
        """Start from what another run's ``dump`` says. Before the first draw. Raises
        ``ConfigError`` for what is none."""
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']} is not {FORMAT}")
            for part in ("rows", "kinds", "types"):
                for counted in data[part].values():
                    passed, judged = counted
                    if not 0 <= passed <= judged < float("inf"):
                        raise ValueError(f"{counted} is no [passed, judged]")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"curriculum.carried holds no state of a curriculum ({error}); write it by "
                "`safeladder curriculum RUN --state`"
            ) from None
        self._carried = data
        self._start()

    # ---- what the report asks -----------------------------------------------------------------

    def bucket_of(self, row: int) -> str:
        """Name of the bucket that a row is in, or of its place against the window."""
        if self._buckets[row] != NO_BUCKET:
            return str(self._names[self._buckets[row]])
        if self._config.schedule == "adaptive":
            return _PLACES[self._pools.zone_of(row)]
        return ""

    def lines(self) -> list[str]:
        """What there is to ask, one sentence for each label."""
        rows = Counter((prompt.route, self.bucket_of(n)) for n, prompt in enumerate(self._prompts))
        total = sum(self._mix.values())
        told = []
        for label in sorted({label for label, _ in rows}):
            names = dict.fromkeys((*self._names, *_PLACES, ""))
            buckets = {name: rows[label, name] for name in names if rows[label, name]}
            parts = ", ".join(f"{n} {name}" for name, n in buckets.items() if name)
            share = f", {self._mix[label] / total:.0%} of the groups" if self._mix else ""
            told.append(
                f"{label}: {sum(buckets.values())} prompts ({parts or 'no buckets'}){share}"
            )
        return told

    # ---- the choice ---------------------------------------------------------------------------

    def _share_of(self, row: int) -> str:
        return self._prompts[row].route if self._mix else _ALL

    def _sums(self) -> Counter[str]:
        sums: Counter[str] = Counter()
        for (share, _), number in self._counts.items():
            sums[share] += number
        return sums

    def _choose(self, share: str) -> tuple[str, int]:
        focus, others = self._focus()
        if focus is None:
            return "pass", self._least_asked(share)
        counts = {why: self._counts[share, why] for why in ("focus", "rehearsal")}
        why = self._reasons.next(counts)
        for zones in (focus, others) if why == "focus" else (others, focus):
            if (row := self._pools.first(share, zones)) is not None:
                return why, row
        return why, self._least_asked(share)  # a label without buckets

    def _focus(self) -> tuple[Zones, Zones]:
        """Zones that the schedule is about, and the others; None for a schedule of all."""
        if self._config.schedule == "staged":
            others = (n for n in range(len(self._names)) if n != self.stage)
            return (self.stage,), tuple(others)
        if self._config.schedule == "adaptive":
            return (_IN_WINDOW,), (_TOO_HARD, _TOO_EASY)
        return None, None

    def _least_asked(self, share: str) -> int:
        row = self._pools.first(share, None)
        assert row is not None, f"{share} has no row"
        return row

    # ---- the policy goes on -------------------------------------------------------------------

    def _fold(self, step: int, due: Sequence[Outcome]) -> None:
        for one in sorted(due):
            version, judged, passed, _, told = one.passes
            types = types_of(self._config, one.row, self._prompts[one.row].meta)
            by_type = tuple(zip(types, told, strict=True)) if len(types) == len(told) else ()
            self._estimates.note(one.row, version, passed, judged, by_type)
        self._estimates.go_on(step)
        self._advance(step)

    def _advance(self, step: int) -> None:
        """Whether ``staged`` goes on to its next bucket."""
        config = self._config
        if config.schedule != "staged" or self.stage + 1 == len(self._names):
            return
        is_long = config.stage_steps is not None and step - self._stage_since >= config.stage_steps
        if is_long or (config.advance_at is not None and self._passes_enough(config.advance_at)):
            self.stage += 1
            self._stage_since = step

    def _passes_enough(self, wanted: float) -> bool:
        labels = sorted({kind.label for kind in self._kinds if kind.bucket})  # sums need an order
        known = [self._estimates.share_of(label, self._names[self.stage]) for label in labels]
        judged = sum(weight for _, weight in known)
        return judged >= MIN_JUDGED and sum(s * w for s, w in known) / judged >= wanted

    def _follow_policy(self) -> None:
        """Zones as the newest estimates have them."""
        if self._config.bucket_by == DIFFICULTY:
            predicted = self._estimates.predict_all()
            self._buckets = difficulty_buckets(self._config, predicted)
        if self._config.schedule == "adaptive":
            low, high = self._config.window
            predicted = self._estimates.predict_all()
            zones: BucketOfRow = np.where(
                predicted < low, _TOO_HARD, np.where(predicted > high, _TOO_EASY, _IN_WINDOW)
            ).astype(np.int16)
            self._pools.divide(zones)
        else:
            self._pools.divide(self._buckets)


def _rows_by_share(prompts: Sequence[Prompt], mix: Mapping[str, float]) -> dict[str, Rows]:
    """The rows that each share is drawn from. Raises ``ConfigError`` if shares and rows differ."""
    if not mix:
        return {_ALL: np.arange(len(prompts))}
    by_label: dict[str, list[int]] = {label: [] for label in mix}
    for row, prompt in enumerate(prompts):
        if prompt.route not in by_label:
            raise ConfigError(
                f"data.mix has no share for the label {prompt.route!r}, which the prompt "
                f"{prompt.id!r} has; add one, or leave those rows out by `labels` of their source"
            )
        by_label[prompt.route].append(row)
    for label, rows in by_label.items():
        if not rows:
            raise ConfigError(f"data.mix has a share for {label!r}, but no row has that label")
    return {label: np.array(rows) for label, rows in by_label.items()}
