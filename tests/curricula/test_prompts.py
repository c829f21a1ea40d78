import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.bounded_msgpack import MAX_DEPTH, pack, read_json_map
from curricula.prompts import MAX_LEVELS, PromptOrder, epoch_permutation, load_prompts
from safeladder.errors import DataError
from safeladder.records import GroupKey, Message, Prompt

ROUTES = ("safety", "normal")


def write(tmp_path: Path, *rows: dict[str, Any] | str, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def load(tmp_path: Path, *rows: dict[str, Any] | str) -> list[Prompt]:
    return load_prompts([write(tmp_path, *rows)], ROUTES)


def refusal(tmp_path: Path, *rows: dict[str, Any] | str) -> str:
    with pytest.raises(DataError) as caught:
        load(tmp_path, *rows)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(str(tmp_path), "")


def test_a_full_row_becomes_a_prompt_and_unused_columns_become_meta(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "prompt": "How?",
        "reference": 42,
        "route": "safety",
        "lang": "zh",
        "images": ["a.png", {"path": "b.png"}],
        "meta": {"kind": "harmful"},
        "answer": "x",
        "extra": 1,
    }
    (prompt,) = load(tmp_path, row)
    assert prompt == Prompt(
        id="7",
        messages=(Message("user", "How?"),),
        route="safety",
        reference="42",
        images=(str(tmp_path / "a.png"), str(tmp_path / "b.png")),
        lang="zh",
        meta={"kind": "harmful", "answer": "x", "extra": 1},
    )


def test_the_system_prompt_goes_only_before_rows_without_a_system_turn(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "Hi"}]
    path = write(
        tmp_path, {"prompt": "Hi", "route": "normal"}, {"messages": own, "route": "normal"}
    )
    first, second = load_prompts([path], ROUTES, "ours")
    assert first.messages == (Message("system", "ours"), Message("user", "Hi"))
    assert second.messages == (Message("system", "own"), Message("user", "Hi"))


def test_rows_of_verl_pass_unchanged(tmp_path: Path) -> None:
    row = {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}],
        "ability": "normal",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"split": "train"},
    }
    (prompt,) = load(tmp_path, row)
    assert (prompt.route, prompt.reference) == ("normal", "2")
    assert prompt.messages == (Message("user", "1+1?"),)
    assert prompt.meta["extra_info"] == {"split": "train"}
    assert prompt.meta["data_source"] == "gsm8k"


def test_chosen_messages_and_structured_answers_become_reference_text(tmp_path: Path) -> None:
    chosen = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    first, second = load(
        tmp_path,
        {"prompt": "q", "route": "normal", "chosen": chosen},
        {"prompt": "p", "route": "normal", "ground_truth": ["a", 1]},
    )
    assert (first.reference, second.reference) == ("a", '["a", 1]')


def test_a_label_is_a_route_only_if_every_label_of_the_file_is_one(tmp_path: Path) -> None:
    routed = load(tmp_path, {"prompt": "a", "label": "safety"}, {"prompt": "b", "label": "normal"})
    assert [(p.route, p.reference) for p in routed] == [("safety", None), ("normal", None)]
    answers = load(tmp_path, {"prompt": "a", "label": "4", "route": "normal"})
    assert [(p.route, p.reference) for p in answers] == [("normal", "4")]
    assert refusal(
        tmp_path, {"prompt": "a", "label": "safety"}, {"prompt": "b", "label": "4"}
    ).startswith("/data.jsonl:2: column label: '4' is not a route")


def test_a_single_route_needs_no_column(tmp_path: Path) -> None:
    (prompt,) = load_prompts([write(tmp_path, {"prompt": "a"})], ["only"])
    assert prompt.route == "only"


def test_an_id_is_stable_and_depends_on_the_content_alone(tmp_path: Path) -> None:
    row, other = {"prompt": "a", "route": "normal"}, {"prompt": "b", "route": "normal"}
    first = load(tmp_path, row, other)
    second = load(tmp_path, {"route": "normal", "prompt": "b"}, row)
    assert first[0].id == second[1].id
    assert first[1].id == second[0].id
    assert first[0].id != first[1].id


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (({"prompt": "a"},), ":1: column route is missing; give one of normal, safety"),
        (({"question": "a"},), ":1: column prompt is missing; give a string or a list"),
        (
            ({"prompt": "a", "route": "saftey"},),
            "'saftey' is not in `routes`; did you mean 'safety'?",
        ),
        (({"prompt": "a", "route": ["safety"]},), "column route: ['safety'] is not in `routes`"),
        (
            ({"prompt": [], "route": "safety"},),
            "column prompt: must be a string or a list of messages",
        ),
        (({"prompt": "  ", "route": "safety"},), "column prompt: the last message is empty"),
        (({"prompt": [{"role": "user"}], "route": "safety"},), "column prompt[0]: a message is"),
        (
            ({"prompt": [{"role": "human", "content": "a"}], "route": "safety"},),
            "column prompt[0]: role 'human' is none of system, developer, user",
        ),
        (({"prompt": "a", "route": "safety", "meta": 3},), "column meta: must be an object, not 3"),
        (({"prompt": "a", "route": "safety", "images": "x"},), "column images: must be a list"),
        (
            ({"prompt": "a", "route": "safety", "k": 1, "meta": {"k": 2}},),
            "column k also stands in meta",
        ),
        (("", '{"prompt": }'), ":2: is not JSON"),
        (('{"prompt": NaN}',), "NaN is no JSON number"),
        (("[1]",), ":1: holds a list; each line must be a JSON object"),
        (
            ('{"prompt": "a", "route": "safety"}', '{"prompt": "a", "prompt": "b"}'),
            ":2: the key 'prompt' stands twice; remove or rename one of the two",
        ),
        (('{"prompt": "a", "meta": {"x": 1, "x": 1}}',), ":1: the key 'x' stands twice"),
        (
            ('{"prompt": "a", "route": "safety", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",),
            ":1: is nested deeper than 16 levels",
        ),
        (
            ('{"prompt": "a", "route": "safety", "x": ' + "[" * 16 + "]" * 16 + "}",),
            ":1: column x: is nested deeper than 16 levels; write the inner part as text",
        ),
        (
            ('{"prompt": "a\\ud800", "route": "safety"}',),
            ":1: column prompt: has half of a surrogate pair",
        ),
        (
            ('{"prompt": "a", "route": "safety", "\\udfff": 1}',),
            ":1: column \\udfff: has half of a surrogate pair",
        ),
        (
            ('{"prompt": "a", "route": "safety", "x": [1e999]}',),
            ":1: column x: has a number that is too large; write it as text",
        ),
        (
            ({"prompt": "a", "route": "safety", "x": {"y": 2**64}},),
            ":1: column x: has a number of more than 64 bits; write it as text",
        ),
        (
            ({"prompt": "a", "route": "safety"}, {"prompt": "a", "route": "safety"}),
            ":2: column id:",
        ),
    ],
)
def test_a_bad_row_is_refused_with_file_line_column_and_the_way_out(
    tmp_path: Path, rows: tuple[dict[str, Any] | str, ...], told: str
) -> None:
    message = refusal(tmp_path, *rows)
    assert message.startswith("/data.jsonl:")
    assert told in message


def test_meta_may_be_as_deep_as_a_call_can_carry(tmp_path: Path) -> None:
    deep: Any = 2**64 - 1
    for _ in range(MAX_LEVELS - 1):
        deep = [deep]
    row = {"prompt": "\U0001f600", "route": "safety", "x": deep, "y": -(2**63)}
    (prompt,) = load(tmp_path, row)
    (same,) = load(tmp_path, {"prompt": "a", "route": "safety", "meta": {"x": deep}})
    assert prompt.meta["x"] == same.meta["x"] == deep
    assert MAX_LEVELS == MAX_DEPTH
    read_json_map(pack(dict(prompt.meta)), "meta", 100)


def test_ids_are_unique_across_files_and_both_places_are_named(tmp_path: Path) -> None:
    row = {"id": "x", "prompt": "a", "route": "normal"}
    one, two = write(tmp_path, row, name="1.jsonl"), write(tmp_path, "", row, name="2.jsonl")
    with pytest.raises(
        DataError, match=r"2\.jsonl:2: column id: 'x' is also the id of .*1\.jsonl:1"
    ):
        load_prompts([one, two], ROUTES)


def test_a_cut_last_line_an_empty_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "a", "route": "normal"})
    path.write_bytes(path.read_bytes() + b'{"prompt": "b", "rou')
    with pytest.raises(DataError, match=r":2: the last line is cut off"):
        load_prompts([path], ROUTES)
    path.write_text("\n\n")
    with pytest.raises(DataError, match="the file is empty"):
        load_prompts([path], ROUTES)
    with pytest.raises(DataError, match=r"nowhere: cannot be read"):
        load_prompts([tmp_path / "nowhere"], ROUTES)


def test_line_separators_inside_text_do_not_break_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    text = json.dumps({"prompt": "a\u2028b", "route": "normal"}, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    assert load_prompts([path], ROUTES)[0].messages[0].content == "a\u2028b"


def walk(
    order: PromptOrder, count: int, key: GroupKey | None = None
) -> Iterator[tuple[GroupKey, str]]:
    for _ in range(count):
        key = order.next_key(key)
        yield key, order.prompt(key).id


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(id=str(i), messages=(Message("user", "q"),), route="normal") for i in range(count)
    ]


def test_every_pass_asks_each_prompt_once_and_in_a_new_order() -> None:
    steps = list(walk(PromptOrder(prompts(50), seed=3, shuffle=True), 100))
    assert [key for key, _ in steps] == [GroupKey(e, o) for e in range(2) for o in range(50)]
    first, second = [i for _, i in steps[:50]], [i for _, i in steps[50:]]
    assert sorted(first) == sorted(second) == sorted(map(str, range(50)))
    assert first != second


def test_the_order_depends_on_seed_and_epoch_alone_not_on_what_was_asked_before() -> None:
    steps = dict(walk(PromptOrder(prompts(50), seed=3, shuffle=True), 150))
    fresh = PromptOrder(prompts(50), seed=3, shuffle=True)
    assert fresh.prompt(GroupKey(2, 17)).id == steps[GroupKey(2, 17)]
    other = PromptOrder(prompts(50), seed=4, shuffle=True)
    assert [other.prompt(GroupKey(0, i)).id for i in range(50)] != [
        steps[GroupKey(0, i)] for i in range(50)
    ]


def test_the_digest_of_an_order_changes_with_whatever_changes_a_place() -> None:
    rows = prompts(5)
    digest = PromptOrder(rows, seed=3, shuffle=True).digest
    assert PromptOrder(list(rows), seed=3, shuffle=True).digest == digest
    asked = replace(rows[2], messages=(Message("user", "something else"),))
    others = [
        PromptOrder(rows, seed=4, shuffle=True),
        PromptOrder(rows, seed=3, shuffle=False),
        PromptOrder(rows[::-1], seed=3, shuffle=True),
        PromptOrder(rows[:4], seed=3, shuffle=True),
        PromptOrder([*rows[:2], asked, *rows[3:]], seed=3, shuffle=True),
    ]
    assert len({digest, *(one.digest for one in others)}) == 6
    unshuffled = [PromptOrder(rows, seed=seed, shuffle=False).digest for seed in (3, 4)]
    assert unshuffled[0] == unshuffled[1], "the seed moves nothing then"


def test_the_stream_of_orders_is_pinned() -> None:
    np.testing.assert_array_equal(epoch_permutation(0, 0, 6), [0, 3, 5, 1, 2, 4])


def test_without_shuffling_rows_come_as_they_stand() -> None:
    steps = list(walk(PromptOrder(prompts(3), seed=3, shuffle=False), 6))
    assert [i for _, i in steps] == ["0", "1", "2", "0", "1", "2"]


def test_an_empty_order_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptOrder([], seed=0, shuffle=True)
