"""What a composition of soft constraints came to: rows for training, and the report."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from curricula.composition import Worded
from curricula.winner_chain import WinnerChain
from rewards.pairwise_judge import Comparison, Outcome

MAX_FAULTS = 5
"""Of the reasons why the judge chose nothing, so many stand in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """One instruction to make harder."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """What became of one seed."""

    seed: Seed
    constraints: tuple[Worded, ...]
    chain: WinnerChain
    comparisons: tuple[Comparison, ...]
    instructions: tuple[str, ...]

    @property
    def is_shown(self) -> bool:
        """Whether the winner is a demonstration: the judge has decided at least once. Else it is an
        answer to the bare seed, which nobody has held against a constraint."""
        return bool(self.chain.pairs)


@dataclass(slots=True)
class Composition:
    """Everything that came of the seeds, in their order."""

    composed: list[Composed] = field(default_factory=list)
    failed: list[tuple[Seed, str]] = field(default_factory=list)
    """Seeds that came to nothing, with the reason."""
    refused: Counter[str] = field(default_factory=Counter)
    """Replies of the rewriter without a constraint, by type: that constraint was left out."""

    def report(self) -> dict[str, Any]:
        """Counts and rates, as in ``report.json``."""
        steps = Counter(step.value for one in self.composed for step in one.chain.steps)
        comparisons = [c for one in self.composed for c in one.comparisons]
        outcomes = Counter(c.outcome for c in comparisons)
        places = Counter(c.prefers_first_place for c in comparisons if c.detail == "")
        said = sum(outcomes.values()) - outcomes[Outcome.INVALID]
        agreed = said - outcomes[Outcome.DISAGREE]
        faults = Counter(c.detail for c in comparisons if c.outcome is Outcome.INVALID)
        pairs = [pair for one in self.composed for pair in one.chain.pairs]
        return {
            "seeds": len(self.composed) + len(self.failed),
            "composed": len(self.composed),
            "failed": Counter(reason for _, reason in self.failed),
            "constraints_refused": dict(self.refused),
            "pairs": len(pairs),
            "pairs_by_constraints": dict(sorted(Counter(p.num_constraints for p in pairs).items())),
            "sft_rows": sum(one.is_shown for one in self.composed),
            "steps": dict(steps),
            "agreement": agreed / said if said else None,
            "always_first": places[True] / said if said else None,
            "always_second": places[False] / said if said else None,
            "invalid": outcomes[Outcome.INVALID],
            "judge_faults": dict(faults.most_common(MAX_FAULTS)),
            "new_wins": steps["new"] / len(pairs) if pairs else None,
        }


def rows_of(result: Composition, system_prompt: str | None) -> dict[str, list[dict[str, Any]]]:
    """Name of a file → its rows: ``pairs``, ``sft`` and the ``chains`` that they come from."""
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]

    def asked(text: str) -> Any:
        return [*system, {"role": "user", "content": text}] if system else text

    pairs, sft, chains = [], [], []
    for one in result.composed:
        for pair in one.chain.pairs:
            row = {"id": f"{one.seed.id}/{pair.num_constraints}", "prompt": asked(pair.prompt)}
            row |= {"chosen": pair.chosen, "rejected": pair.rejected}
            pairs.append(row | _columns(one, pair.num_constraints))
        if one.is_shown:
            row = {"id": one.seed.id, "prompt": asked(one.instructions[-1])}
            row |= {"response": one.chain.winner}
            sft.append(row | _columns(one, len(one.constraints)))
        chains.append(
            {
                "id": one.seed.id,
                "instructions": list(one.instructions),
                "constraints": [asdict(worded) for worded in one.constraints],
                "steps": [step.value for step in one.chain.steps],
                "choices": [list(c.choices) for c in one.comparisons],
            }
        )
    return {"pairs": pairs, "sft": sft, "chains": chains}


def _columns(one: Composed, count: int) -> dict[str, Any]:
    """The first so many constraints as columns: hard ones can be checked by rule."""
    shown = one.constraints[:count]
    return {
        "num_constraints": count,
        "instruction_id_list": [worded.id for worded in shown],
        "kwargs": [dict(worded.kwargs) for worded in shown],
        "constraints": [worded.text for worded in shown],
    }
