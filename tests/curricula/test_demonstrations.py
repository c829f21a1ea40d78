import json
from pathlib import Path
from typing import Any

import pytest

from curricula.demonstrations import Demonstration, load_demonstrations
from safeladder.errors import DataError
from safeladder.records import Message


def write(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_prompt_is_text_or_messages_as_in_a_prompt_file(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
    rows = [{"prompt": "q", "response": "a"}, {"messages": turns, "response": "b"}]
    assert load_demonstrations([write(tmp_path, *rows)]) == [
        Demonstration((Message("user", "q"),), "a"),
        Demonstration((Message("system", "be brief"), Message("user", "q")), "b"),
    ]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": 5, "response": "a"}, "column prompt: must be a string or a list of messages"),
        ({"prompt": [{"role": 1}], "response": "a"}, r"column prompt\[0\]: a message is"),
        ({"response": "a"}, "column prompt is missing"),
        ({"prompt": "q", "response": ""}, "column response: must be text that is not empty"),
        ({"prompt": "q", "response": [1]}, "column response: must be text that is not empty"),
        ({"prompt": "q"}, "column response: must be text that is not empty"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(
    tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match=rf"sft\.jsonl:2: {told}"):
        load_demonstrations([write(tmp_path, {"prompt": "q", "response": "a"}, row)])
