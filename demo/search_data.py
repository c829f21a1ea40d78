"""Questions about ``demo/library`` and demonstrations of how to look them up.

``python -m demo.search_data build/search`` writes ``train.jsonl``, ``heldout.jsonl`` and
``sft.jsonl`` there. What the demonstrations are shown is what the environment of
``configs/search.yaml`` shows.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.deliberation.search import SearchEnvironment
from safeladder.conversation import ModelTurn

LIBRARY = Path(__file__).parent / "library"
OPTIONS: dict[str, Any] = {"corpus": LIBRARY, "results": 1, "max_turns": 3}
HELD_OUT = 4
"""Towns that no question of training asks about."""
QUESTIONS = {
    "On which river is {}?": r"on the river (\w+)",
    "What is {} known for?": r"known for its (\w+)",
    "Who is the mayor of {}?": r"mayor of \w+ is (\w+ \w+)",
}


def questions() -> Iterator[tuple[str, str, str]]:
    """(town, question, answer), town by town."""
    for line in (LIBRARY / "towns.jsonl").read_text(encoding="utf-8").splitlines():
        town = json.loads(line)
        for question, pattern in QUESTIONS.items():
            found = re.search(pattern, town["text"])
            assert found is not None, f"{town['id']} does not say {question}"
            yield town["title"], question.format(town["title"]), found[1]


def step(thought: str, action: str, argument: str, confidence: int) -> str:
    """One turn in the protocol."""
    return (
        f"<think>{thought}</think>\n<{action}>{argument}</{action}>\n"
        f"<confidence>{confidence}</confidence>"
    )


def demonstrations(
    town: str, question: str, answer: str, environment: SearchEnvironment
) -> Iterator[dict[str, Any]]:
    """Each turn of one conversation as a row: what was said before, and what to say."""
    turns = [step(f"I do not know {town} yet.", "search", town, 2)]
    if "river" not in question:
        turns.append(step("The abstract does not say it.", "read", town.lower(), 4))
    turns.append(step("The text says it.", "answer", answer, 9))
    messages = [{"role": "user", "content": question}]
    for number, text in enumerate(turns, 1):
        yield {"prompt": list(messages), "response": text}
        reply = environment.reply({}, ModelTurn(number=number, text=text, is_cut=False))
        messages += [
            {"role": "assistant", "content": text},
            {"role": "user", "content": reply.text},
        ]


def main(folder: Path) -> None:
    """Write the three files."""
    environment = SearchEnvironment(**OPTIONS, read_tokens=1000, model_path=None)
    environment.start()
    asked = list(questions())
    towns = sorted({town for town, _, _ in asked})
    random.Random(0).shuffle(towns)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": [], "sft": []}
    for town, question, answer in asked:
        row = {
            "id": question, "prompt": question, "reference": answer, "route": "search",
            "meta": {"kind": "task"},
        }  # fmt: skip
        is_held_out = town in towns[:HELD_OUT]
        rows["heldout" if is_held_out else "train"].append(row)
        if not is_held_out:
            rows["sft"] += demonstrations(town, question, answer, environment)
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
