"""Documents that cannot lie: what README and docs name exists, and the examples run."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer

from cluster.cli import app
from cluster.config_docs import DOCS, MARKDOWN, SCHEMA, config_markdown, config_schema, tables
from rewards.building import build_verifier
from rewards.completers import Completer
from rewards.judge import Judge
from safeladder import errors
from safeladder.config import Config
from safeladder.config_loading import load_config
from safeladder.records import Message, ScoreRequest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md")]
ROOMS = ("safeladder", "vision", "rewards", "actors", "learners", "curricula", "evals", "cluster")
FOLDERS = (*ROOMS, "demo", "benchmarks", "configs", "docs", "requirements", "scripts", "tests")
DEMO = ROOT / "configs/demo.yaml"
JUDGE = ROOT / "configs/overlays/judge.yaml"
KEYS = {key for table in tables() for key in table.keys}
NAMES = {name for table in tables() for name in (table.path, *table.keys, *table.derived) if name}

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def code(path: Path) -> Iterator[str]:
    """Inline code and fenced blocks."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    yield from (*blocks, *re.findall(r"`([^`\n]+)`", prose))


def block(language: str, start: str) -> str:
    """The README's fenced block that begins with a line."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n({re.escape(start)}\n.*?)^```", text, re.M | re.S)
    return str(found)


def test_the_config_reference_is_up_to_date() -> None:
    assert (DOCS / MARKDOWN).read_text(encoding="utf-8") == config_markdown(), "make docs"
    assert (DOCS / SCHEMA).read_text(encoding="utf-8") == config_schema(), "make docs"


def test_every_key_of_the_config_has_a_meaning() -> None:
    rows = [line for line in config_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(KEYS)
    assert [row for row in rows if row.endswith("|  |")] == []


@every_document
def test_every_path_exists(path: Path) -> None:
    pattern = rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w"
    named = {name for text in code(path) for name in re.findall(pattern, text)}
    found = {name for name in named if list(ROOT.glob(name)) or (ROOT / f"{name}.py").exists()}
    assert named == found


@every_document
def test_every_link_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@every_document
def test_every_make_target_exists(path: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    named = {found for text in code(path) for found in re.findall(r"\bmake ([a-z-]+)", text)}
    assert named <= set(targets)


@every_document
def test_every_verb_of_the_command_line_exists(path: Path) -> None:
    command = typer.main.get_command(app)
    verbs = set(getattr(command, "commands", {}))
    pattern = r"(?:\bsafeladder|-m cluster) ([a-z][a-z-]*)"
    assert {v for text in code(path) for v in re.findall(pattern, text)} <= verbs


@every_document
def test_every_config_key_exists(path: Path) -> None:
    sections = "|".join(key for key in KEYS if "." not in key)
    pattern = rf"(?<![\w./-])(?:{sections})(?:\.(?:\w+|<name>))+(?![\w(/])"
    named = {found for text in code(path) for found in re.findall(pattern, text)}
    known = "|".join(re.escape(name).replace("<name>", r"[\w<>]+") for name in NAMES)
    is_file = r"\w+\.(?:py|jsonl)"
    assert [name for name in named if not re.fullmatch(f"{known}|{is_file}", name)] == []


def test_the_architecture_has_a_line_for_each_file() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    listed: set[str] = set()
    for room, body in re.findall(r"^### `([\w/]+)/`(.*?)(?=^##)", text, re.M | re.S):
        rows = re.findall(r"^\| `([\w./]+)` \|", body, re.M)
        listed |= {row if "/" in row else f"{room}/{row}" for row in rows}
    folders = [ROOT / folder for folder in (*ROOMS, "demo", "benchmarks")]
    files = {file for folder in folders for file in folder.rglob("*.py")}
    files = {file for file in files if file.name != "__init__.py" and "_pb2" not in file.name}
    expected = {str(file.relative_to(ROOT)) for file in files}
    assert listed == expected - {"cluster/__main__.py"}


def test_the_readme_lists_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.SafeladderError)}
    assert set(map(int, re.findall(r"^\| (\d+) \|", text, re.M))) == codes | {0}


def test_the_readme_tells_the_demos_budget() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    demo = load_config([DEMO])
    steps, groups = demo.run.steps, demo.schedule.groups_per_step
    size, layers = demo.rollout.group_size, demo.learner.train_last_layers
    assert f"{steps} optimizer steps of {groups} groups of {size} answers" in text
    assert f"Only the last {layers} of the 30 layers are trained" in text
    assert demo.schedule.max_staleness == 1
    assert len(demo.principles) == 4


def request(response: str) -> ScoreRequest:
    return ScoreRequest(
        sample_id="0/0/0",
        attempt=1,
        messages=(Message("user", "Why is the sky blue?"),),
        response=response,
        finish_reason="stop",
        num_tokens=1,
        route="normal",
    )


def test_the_readmes_verifier_and_config_work_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("brief")
    monkeypatch.setitem(sys.modules, "brief", module)
    exec(block("python", "# brief.py"), vars(module))
    file = tmp_path / "brief.yaml"
    file.write_text(block("yaml", "# brief.yaml"), encoding="utf-8")
    config = load_config([file])
    brief = build_verifier("brief", config.principles["brief"])
    verdicts = asyncio.run(brief.score([request("Light scatters."), request("so " * 31)]))
    assert [(v.score, v.evidence) for v in verdicts] == [(1.0, "2 words"), (0.0, "31 words")]
    assert config.rollout.max_model_tokens <= config.learner.micro_batch_tokens
    rows = (ROOT / config.data.train[0]).read_text(encoding="utf-8")
    assert set(re.findall(r'"route": "(\w+)"', rows)) <= set(config.routes)


def judged() -> Config:
    return load_config([DEMO, JUDGE])


class Replies:
    """A completer that always says the same, and finds it likeliest too."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def complete(self, messages: list[list[Message]], max_tokens: int) -> list[str]:
        return ["Safe with refusal"] * len(messages)

    async def label_logprobs(
        self, conversations: list[list[Message]], labels: list[str]
    ) -> list[list[float]]:
        return [[-1.0 if label == "Safe with refusal" else -9.0 for label in labels]] * len(
            conversations
        )

    async def close(self) -> None:
        return None


def test_the_overlay_swaps_the_safety_verifier_for_the_judge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, config = load_config([DEMO]), judged()
    safety = config.principles["safety"]
    assert (safety.verifier, safety.service) == ("rewards.judge:Judge", None)
    assert config.model_copy(update={"principles": base.principles}) == base
    assert safety.options["completer_options"]["path"] == str(config.model.path)
    stand_in: type[Completer] = Replies
    monkeypatch.setattr("rewards.judge.load_object", lambda *_: stand_in)
    judge = build_verifier("safety", safety)
    assert isinstance(judge, Judge)

    async def score() -> float | None:
        await judge.start()
        (verdict,) = await judge.score([request("I can't help with that.")])
        await judge.close()
        return verdict.score

    assert asyncio.run(score()) == 0.1


@pytest.mark.engine
def test_the_overlays_completer_takes_its_options() -> None:
    build_verifier("safety", judged().principles["safety"])
