"""What follows from the values of held-out probes: nothing, the end of the run, or a tripwire.

A pure function of the rounds so far: a resumed run that reads them again comes to the same ruling.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.probe_log import Round, Ruling, RulingKind
from safeladder.config import Config, TripwireConfig

_SEVERITY = ("fail", "rollback", "pause", "exit")


def ruling_on(config: Config, rounds: Sequence[Round], num_rollbacks: int = 0) -> Ruling | None:
    """What follows from the last round, given those before it; the gravest of several. A run that
    has rolled back ``num_rollbacks`` times, at most once, pauses instead."""
    if not rounds:
        return None
    found = [
        _tripped(name, tripwire, rounds, num_rollbacks)
        for name, tripwire in config.tripwires.items()
    ]
    found += [_on_target(config, rounds), _on_plateau(config, rounds)]
    rulings = [ruling for ruling in found if ruling is not None]
    return min(rulings, key=lambda ruling: _SEVERITY.index(ruling.kind), default=None)


def _tripped(
    name: str, tripwire: TripwireConfig, rounds: Sequence[Round], num_rollbacks: int
) -> Ruling | None:
    last, probe = rounds[-1], tripwire.probe
    value, bound = last.values.get(probe), _bound(tripwire, rounds)
    if value is None or bound is None or value >= bound:
        return None
    fell = (
        f"tripwire {name}: probe {probe} is at {value:.3f} at step {last.step}, below its bound of "
        f"{bound:.3f}"
    )
    where = last.step, name, probe, value
    if tripwire.action == "fail":
        return _ruling("fail", f"{fell}; the run ends", *where)
    if tripwire.action == "pause":
        return _ruling("pause", f"{fell}; the run pauses", *where)
    to = _last_above(probe, bound, rounds[:-1])
    if num_rollbacks:
        return _ruling("pause", f"{fell} again after a rollback; the run pauses", *where)
    if to is None:
        text = f"{fell}, and was never above it, so there is nothing to go back to; the run pauses"
        return _ruling("pause", text, *where)
    text = f"{fell}; the run goes back to its last checkpoint of step {to} or before"
    return _ruling("rollback", text, *where, to=to)


def _ruling(
    kind: RulingKind,
    text: str,
    step: int,
    reason: str,
    probe: str,
    value: float,
    to: int | None = None,
) -> Ruling:
    return Ruling(kind=kind, text=text, step=step, reason=reason, probe=probe, value=value, to=to)


def _bound(tripwire: TripwireConfig, rounds: Sequence[Round]) -> float | None:
    if tripwire.at_least is not None:
        return tripwire.at_least
    assert tripwire.max_drop is not None, "a tripwire has one bound"
    start = next((r.values[tripwire.probe] for r in rounds if tripwire.probe in r.values), None)
    return None if start is None else round(start - tripwire.max_drop, 9)


def _last_above(probe: str, bound: float, rounds: Sequence[Round]) -> int | None:
    steps = [r.step for r in rounds if r.values.get(probe, -1.0) >= bound]
    return max(steps, default=None)


def _on_target(config: Config, rounds: Sequence[Round]) -> Ruling | None:
    target, last = config.exit.target, rounds[-1]
    if target is None:
        return None
    value = last.values.get(target.probe)
    if value is None or value < target.at_least:
        return None
    text = (
        f"probe {target.probe} is at {value:.3f} at step {last.step}, its target is "
        f"{target.at_least:.3f}"
    )
    return _ruling("exit", text, last.step, "target", target.probe, value)


def _on_plateau(config: Config, rounds: Sequence[Round]) -> Ruling | None:
    plateau = config.exit.plateau
    if plateau is None:
        return None
    values = [r.values[plateau.probe] for r in rounds if plateau.probe in r.values]
    best, since = -1.0, 0
    for value in values:
        is_better = value > best + plateau.min_delta if best >= 0 else True
        best, since = (value, 0) if is_better else (best, since + 1)
    if not values or since < plateau.patience:
        return None
    text = f"probe {plateau.probe} has not risen above {best:.3f} for {since} rounds"
    return _ruling("exit", text, rounds[-1].step, "plateau", plateau.probe, values[-1])
