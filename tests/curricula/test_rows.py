"""Sources of prompts: Parquet, Hugging Face datasets, and columns of other projects."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curricula.prompts import load_prompts
from curricula.rows import read_rows
from safeladder.data_config import DataConfig, SourceConfig
from safeladder.errors import DataError
from safeladder.records import Message

ROUTES = ("safety", "math")


def parquet(tmp_path: Path, rows: list[dict[str, Any]], name: str = "rows.parquet") -> Path:
    path = tmp_path / name
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def jsonl(tmp_path: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_verl_in_parquet_are_prompts_as_they_stand(tmp_path: Path) -> None:
    rows = [
        {
            "data_source": "math",
            "prompt": [{"role": "user", "content": f"{n}+1?"}],
            "ability": "numbers",
            "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
            "extra_info": {"index": n},
        }
        for n in range(3)
    ]
    prompts = load_prompts([parquet(tmp_path, rows)], ROUTES)
    assert [p.reference for p in prompts] == ["1", "2", "3"]
    assert {p.route for p in prompts} == {"math"}
    assert prompts[2].messages == (Message("user", "2+1?"),)
    assert prompts[2].meta["extra_info"] == {"index": 2}


def test_the_same_rows_are_the_same_prompts_in_every_format(tmp_path: Path) -> None:
    import datasets

    rows = [{"prompt": f"q{n}", "route": "safety", "answer": str(n)} for n in range(5)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    splits.save_to_disk(str(tmp_path / "splits"))
    expected = load_prompts([jsonl(tmp_path, *rows)], ROUTES)
    for source in (
        parquet(tmp_path, rows),
        SourceConfig(dataset=str(tmp_path / "saved")),
        SourceConfig(dataset=str(tmp_path / "splits")),
    ):
        assert load_prompts([source], ROUTES) == expected


def test_a_folder_of_data_files_is_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl(folder, *({"prompt": f"q{n}", "route": "math"} for n in range(4)), name="train.jsonl")
    jsonl(folder, {"prompt": "held out", "route": "math"}, name="test.jsonl")
    source = SourceConfig(dataset=str(folder), split="train[1:3]")
    assert [p.messages[0].content for p in load_prompts([source], ROUTES)] == ["q1", "q2"]
    test = SourceConfig(dataset=str(folder), split="test")
    assert [place for place, _ in read_rows(test)] == [f"{folder}[test]: row 1"]


def test_columns_of_other_projects_are_named_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"input": "How?", "gold": 7, "task": "math", "x": 1})
    columns = {"prompt": "input", "reference": "gold", "route": "task"}
    (prompt,) = load_prompts([SourceConfig(path=path, columns=columns)], ROUTES)
    assert (prompt.messages[0].content, prompt.reference, prompt.route) == ("How?", "7", "math")
    assert prompt.meta == {"x": 1}
    with pytest.raises(DataError, match=r"rows.jsonl:1: column question is missing.*has gold, inp"):
        load_prompts([SourceConfig(path=path, columns={"prompt": "question"})], ROUTES)


def test_a_source_can_be_cut_to_some_labels_and_some_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "label": ("safety", "math", "poetry")[n % 3]} for n in range(9)]
    path = jsonl(tmp_path, *rows)
    taken = load_prompts([SourceConfig(path=path, labels=("math",))], ROUTES)
    assert [p.messages[0].content for p in taken] == ["q1", "q4", "q7"]
    first = load_prompts([SourceConfig(path=path, labels=("math",), limit=5)], ROUTES)
    assert [p.messages[0].content for p in first] == ["q1", "q4"]
    with pytest.raises(DataError, match="no row has one of the labels prose; check `labels`"):
        load_prompts([SourceConfig(path=path, labels=("prose",))], ROUTES)


def refused(source: Path | SourceConfig) -> str:
    with pytest.raises(DataError) as caught:
        load_prompts([source], ROUTES)
    return str(caught.value)


def test_a_bad_row_of_a_table_is_named_by_file_row_and_column(tmp_path: Path) -> None:
    good = {"prompt": "a", "route": "math"}
    said = refused(parquet(tmp_path, [good, good | {"prompt": None}]))
    assert said.startswith(f"{tmp_path}/rows.parquet: row 2: column prompt is missing")
    said = refused(parquet(tmp_path, [good | {"picture": b"\x89PNG"}]))
    assert "rows.parquet: row 1: column picture: has a value of type bytes; write it into" in said
    said = refused(parquet(tmp_path, [good | {"when": datetime(2026, 1, 1)}]))
    assert "row 1: column when: has a value of type datetime; write it as text" in said
    said = refused(parquet(tmp_path, [good | {"grade": float("nan")}]))
    assert "row 1: column grade: has NaN" in said


def test_what_is_no_table_is_said_in_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    assert "cannot be read as Parquet" in refused(broken)
    assert "no such file" in refused(tmp_path / "absent.parquet")
    assert "has no row" in refused(parquet(tmp_path, [{"prompt": "a"}][:0] or [], "empty.parquet"))
    saved = tmp_path / "saved"
    import datasets

    datasets.DatasetDict({"dev": datasets.Dataset.from_list([{"prompt": "a"}])}).save_to_disk(
        str(saved)
    )
    said = refused(SourceConfig(dataset=str(saved)))
    assert f"{saved}[train]: cannot be loaded (no split 'train'; it has dev)" in said


def test_the_first_of_two_equal_ids_is_found_in_any_source(tmp_path: Path) -> None:
    one = parquet(tmp_path, [{"id": str(n), "prompt": "a", "route": "math"} for n in range(3)])
    two = jsonl(tmp_path, {"prompt": "b", "route": "safety"}, {"id": 1, "prompt": "c"})
    source = SourceConfig(path=two, columns={"route": "kind"}, labels=("math",))
    two.write_text(two.read_text().replace("}", ', "kind": "math"}'))
    with pytest.raises(DataError, match=r"rows.jsonl:2: column id: '1' is also .*parquet: row 2;"):
        load_prompts([one, source], ROUTES)


def test_a_path_and_a_source_in_full_can_stand_in_one_list() -> None:
    data = DataConfig.model_validate({"train": ["a.jsonl", {"path": "b.parquet", "limit": 3}]})
    assert data.train == (Path("a.jsonl"), SourceConfig(path=Path("b.parquet"), limit=3))
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({}, "give `path` or `dataset`"),
        ({"path": "a", "dataset": "b"}, "give `path` or `dataset`"),
        ({"path": "a", "split": "train"}, "`split` belongs to a `dataset`"),
    ],
)
def test_a_source_that_is_none_or_two_is_refused(source: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SourceConfig.model_validate(source)
