import json
from pathlib import Path

from actors.rendering import PromptRenderer
from cluster.supervised import supervised_rows
from safeladder.records import Message
from tests.tiny_model import save_tiny_model

from .checked_setup import build


def test_rows_are_rendered_as_the_checks_read_them(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
    path = tmp_path / "sft.jsonl"
    rows = [{"prompt": turns, "response": "a"}, {"prompt": "q", "response": "b"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = build(tmp_path, sft__data=[str(path)])
    renderer = PromptRenderer.from_config(config.model)
    first, second = supervised_rows(config)
    conversation = (Message("system", "be brief"), Message("user", "q"))
    assert first.prompt_tokens.tolist() == renderer.render_messages(conversation).tolist()
    assert second.prompt_tokens.tolist() == renderer.render_messages(conversation[1:]).tolist()
    assert second.tokens.tolist() == renderer.encode_answer("b").tolist()
