"""A local corpus and its BM25 index: the only door to ``bm25s``.

A corpus is a folder (or one file) of ``.jsonl`` rows ``{"id", "title", "abstract"?, "text"}`` and
of ``.txt`` files, whose name is the id, whose first line is the title and whose first paragraph
after it is the abstract. Read whole into memory, and indexed once for each engine. Equal scores
keep the order of the corpus, so that a search is a function of the query alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from safeladder.errors import ConfigError, DataError

ABSTRACT_CHARS = 300
"""An abstract that is not given is the text's first paragraph, cut here."""


class Document(NamedTuple):
    """One document."""

    id: str
    title: str
    abstract: str
    text: str


def read_corpus(path: Path, key: str) -> list[Document]:
    """All documents, in order of file and row. ``key`` names the setting in messages.

    Raises ``ConfigError`` if there is no corpus, ``DataError`` for a row that is no document and
    for an id that stands there twice.
    """
    if not path.exists():
        raise ConfigError(f"{key}: there is no {path}; name a folder of .jsonl and .txt files")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [file for file in files if file.suffix in (".jsonl", ".txt")]
    documents: dict[str, Document] = {}
    for file in files:
        for place, document in _read(file, path):
            if document.id in documents:
                raise DataError(f"{place}: the id {document.id!r} stands there twice; rename one")
            documents[document.id] = document
    if not documents:
        raise ConfigError(f"{key}: {path} holds no document; put .jsonl or .txt files there")
    return list(documents.values())


def _read(file: Path, root: Path) -> Iterator[tuple[str, Document]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}") from None
    if file.suffix == ".txt":
        title, _, rest = text.strip().partition("\n")
        if title:
            name = file.stem if file == root else file.relative_to(root).with_suffix("").as_posix()
            yield str(file), Document(name, title.strip(), _abstract(rest), text.strip())
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{file}:{number}", _row(line, f"{file}:{number}")


def _row(line: str, place: str) -> Document:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: is no JSON: {error.msg}; correct or remove the line") from None
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: is no object with id, title and text")
    found: dict[str, str] = {}
    for column in ("id", "title", "text"):
        value: Any = row.get(column)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{place}: column {column} must be a text, got {value!r}")
        found[column] = value.strip()
    abstract = row.get("abstract")
    if not isinstance(abstract, str | None):
        raise DataError(f"{place}: column abstract must be a text, got {abstract!r}")
    return Document(**found, abstract=abstract or _abstract(found["text"]))


def _abstract(text: str) -> str:
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    is_long = len(paragraph) > ABSTRACT_CHARS
    return paragraph[: ABSTRACT_CHARS - 1] + "…" if is_long else paragraph


class CorpusIndex:
    """Documents, and which of them a query means."""

    def __init__(self, documents: list[Document]) -> None:
        import bm25s

        self._documents = documents
        self._by_id = {document.id: document for document in documents}
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it would tell of each index
        self._index = bm25s.BM25(backend="numpy", auto_compile=False)
        texts = [f"{one.title}\n{one.abstract}\n{one.text}" for one in documents]
        self._index.index(self._tokens(texts), show_progress=False)

    def __len__(self) -> int:
        return len(self._documents)

    def find(self, document_id: str) -> Document | None:
        """The document with an id."""
        return self._by_id.get(document_id)

    def search(self, query: str, limit: int) -> list[Document]:
        """The documents with the highest scores above 0, best first."""
        (tokens,) = self._tokens([query])
        known = [token for token in tokens if token in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        best = np.argsort(-scores, kind="stable")[:limit]
        return [self._documents[k] for k in best if scores[k] > 0]

    @staticmethod
    def _tokens(texts: list[str]) -> list[list[str]]:
        """Words of two letters or more, lower case, without English stop words."""
        import bm25s

        found: list[list[str]] = bm25s.tokenize(texts, return_ids=False, show_progress=False)
        return found
