"""Reward servers over HTTP, asked and served; a failure is never a number on either side."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from rewards.adapters.openrlhf_server import MAX_SAMPLES, OpenRlhfServer, main
from rewards.building import build_verifier
from rewards.exact import ExactAnswer
from rewards.format import StopWithinLimit
from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError, VerifierUnavailableError
from safeladder.records import InvalidCause, Verdict
from tests.rewards.adapters.running import scored
from tests.rewards.samples import sample
from tests.rewards.stand_ins import WordRule

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
FOUR = sample("It is 4", "What is 2 + 2?", reference="4", meta={"uuid": "u1"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RewardServer:
    """A server of the other project: answers what it is told, and keeps what it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []
        self.cookies: list[str | None] = []

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.Response(status=405)
        self.asked.append((request.path, await request.json()))
        self.cookies.append(request.cookies.get("session"))
        answer = self.answers[request.path]
        if callable(answer):
            handled: web.StreamResponse = await answer(request)
            return handled
        response = web.json_response(answer)
        response.set_cookie("session", "s1")
        return response


def ask(cls: str, answers: dict[str, Any], **options: Any) -> tuple[Verdict, RewardServer]:
    server = RewardServer(answers)

    async def run() -> Verdict:
        async with server as url:
            options.setdefault("url", url)
            config = PrincipleConfig(verifier=f"rewards.adapters.{cls}", options=options)
            (verdict,) = await scored(build_verifier("rule", config), [FOUR])
            return verdict

    return asyncio.run(run()), server


def test_openrlhfs_protocol_is_asked() -> None:
    reply = {"rewards": [0.75], "scores": [1.0], "extra_logs": {}}
    verdict, server = ask("openrlhf:OpenRlhfRemote", {"/": reply})
    assert verdict.score == 0.75
    prompt = "<think> example </think> 7\n\nWhat is 2 + 2?"
    body = {"query": [prompt + "It is 4"], "prompts": [prompt], "labels": ["4"]}
    assert server.asked == [("/", body)]


def test_slimes_remote_answer_is_the_reward_itself() -> None:
    verdict, server = ask("slime:SlimeRemote", {"/": 3}, low=1, high=5)
    assert verdict.score == 0.5
    assert set(server.asked[0][1]) == {"prompt", "response", "label"}


def test_nemo_gym_is_seeded_then_asked_in_one_session() -> None:
    verdict, server = ask("nemo_gym:NemoGymRemote", {"/seed_session": {}, "/verify": {"reward": 1}})
    assert verdict.score == 1
    assert [path for path, _ in server.asked] == ["/seed_session", "/verify"]
    assert server.cookies == [None, "s1"]
    body = server.asked[1][1]
    assert (body["uuid"], body["reference"]) == ("u1", "4")
    assert body["responses_create_params"]["input"][-1]["content"] == "What is 2 + 2?"
    assert body["response"]["output"][0]["content"][0]["text"] == "It is 4"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ({"reward": 1.0, "mask_sample": False, "failure_reason": "judge slow"}, None),
        ({"reward": 1.0, "failure_kind": "slow"}, None),
        ({"reward": 1.0, "mask_sample": True}, InvalidCause.ERROR),
        ({"reward": 0.0, "mask_sample": True, "failure_reason": "lost"}, InvalidCause.ERROR),
        ({"reward": 0.0, "failure_reason": "judge down"}, InvalidCause.ERROR),
        ({"reward": 0.0, "mask_sample": "no"}, InvalidCause.MALFORMED),
        ({"mask_sample": False}, InvalidCause.MALFORMED),
        ({"reward": None}, InvalidCause.ABSTAIN),
        ([1.0], InvalidCause.MALFORMED),
    ],
)
def test_nemo_gyms_masks_and_reasons(answer: Any, cause: InvalidCause | None) -> None:
    verdict, _ = ask("nemo_gym:NemoGymRemote", {"/seed_session": {}, "/verify": answer})
    assert verdict.cause == cause
    assert (verdict.score == 1) == (cause is None)
    assert verdict.retryable == (isinstance(answer, dict) and answer.get("mask_sample") is True)


async def hang(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError


async def trickle(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(600):
        await response.write(b" ")
        await asyncio.sleep(0.1)
    return response


async def flood(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"1" * 2**21)


async def break_off(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def replying(status: int, text: str = "", **headers: str) -> Handler:
    async def reply(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers=headers)

    return reply


@pytest.mark.parametrize(
    ("answer", "cause", "retryable"),
    [
        (hang, InvalidCause.TIMEOUT, True),
        (trickle, InvalidCause.TIMEOUT, True),
        (flood, InvalidCause.MALFORMED, False),
        (break_off, InvalidCause.UNAVAILABLE, True),
        (replying(500, "1.0"), InvalidCause.UNAVAILABLE, True),
        (replying(429), InvalidCause.UNAVAILABLE, True),
        (replying(404, "0"), InvalidCause.ERROR, False),
        (replying(307, "1", Location="/elsewhere"), InvalidCause.ERROR, False),
        (replying(200, ""), InvalidCause.MALFORMED, False),
        (replying(200, "NaN"), InvalidCause.MALFORMED, False),
        (replying(200, "Infinity"), InvalidCause.OUT_OF_RANGE, False),
        (replying(200, "1e999"), InvalidCause.OUT_OF_RANGE, False),
        (replying(200, '"1"'), InvalidCause.MALFORMED, False),
        (replying(200, "[" * 100_000), InvalidCause.MALFORMED, False),
        (replying(200, "-1"), InvalidCause.OUT_OF_RANGE, False),
        (replying(200, "null"), InvalidCause.ABSTAIN, False),
    ],
)
def test_what_a_server_can_do_wrong_has_a_cause(
    answer: Handler, cause: InvalidCause, retryable: bool
) -> None:
    remote = {"timeout_s": 1.0} if cause is InvalidCause.TIMEOUT else {}
    verdict, server = ask("slime:SlimeRemote", {"/": answer}, remote=remote)
    assert (verdict.cause, verdict.retryable, verdict.score) == (cause, retryable, None)
    assert len(server.asked) == 1, "a redirect was followed"


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(VerifierUnavailableError, match="start it or correct the url"):
        ask("slime:SlimeRemote", {}, url="http://127.0.0.1:9")


def serving(verifiers: dict[str, Any], body: Callable[[str], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        server = OpenRlhfServer(verifiers, dict.fromkeys(verifiers, 30.0), stop_texts=["<|end|>"])
        try:
            await server.start()
            return await body(server.url)
        finally:
            await server.close()

    return asyncio.run(run())


def posted(url: str, path: str, content: Any) -> Awaitable[httpx.Response]:
    async def post() -> httpx.Response:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        async with httpx.AsyncClient() as client:
            return await client.post(f"{url}{path}", content=raw)

    return post()


def texts(*responses: str) -> dict[str, list[Any]]:
    return {
        "query": [f"<user>2 + 2?{response}" for response in responses],
        "prompts": ["<user>2 + 2?"] * len(responses),
        "labels": ["4"] * len(responses),
    }


def test_our_verifiers_answer_openrlhf() -> None:
    async def body(url: str) -> httpx.Response:
        return await posted(url, "/rule", texts("It is 4<|end|>", "5"))

    answer = serving({"rule": ExactAnswer(principle="rule")}, body)
    assert answer.status_code == 200
    assert answer.json()["rewards"] == answer.json()["scores"] == [1.0, 0.0]
    assert set(answer.json()) == {"rewards", "scores", "extra_logs"}


def test_our_client_understands_our_server() -> None:
    async def body(url: str) -> Verdict:
        config = PrincipleConfig(
            verifier="rewards.adapters.openrlhf:OpenRlhfRemote", options={"url": f"{url}/rule"}
        )
        (verdict,) = await scored(build_verifier("rule", config), [FOUR])
        return verdict

    assert serving({"rule": ExactAnswer(principle="rule")}, body).score == 1


@pytest.mark.parametrize("word", ["raise", "abstain", "gone", "nan", "high"])
def test_one_failed_sample_makes_the_answer_an_error(word: str) -> None:
    async def body(url: str) -> httpx.Response:
        return await posted(url, "/safety", texts("yes", word))

    answer = serving({"safety": WordRule(principle="safety", word="yes")}, body)
    assert answer.status_code == 503
    assert "rewards" not in answer.json()
    assert [(s["index"], s["status"]) for s in answer.json()["samples"]] == [(1, "invalid")]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"[" * 100_000, 400),
        ({"query": ["a"]}, 400),
        ({"query": ["a"], "prompts": ["a"], "labels": []}, 400),
        ({"query": ["a"], "prompts": ["b"], "labels": [None]}, 400),
        ({"query": [1], "prompts": ["b"], "labels": [None]}, 400),
        ({"query": ["a"], "prompts": ["a"], "labels": [4]}, 400),
        ({"query": [], "prompts": [], "labels": []}, 400),
        (texts(*["x"] * (MAX_SAMPLES + 1)), 400),
        (b'"' + b"x" * 2**24 + b'"', 413),
    ],
)
def test_a_request_that_is_none_is_refused(content: Any, status: int) -> None:
    answer = serving(
        {"rule": ExactAnswer(principle="rule")}, lambda url: posted(url, "/rule", content)
    )
    assert answer.status_code == status


def test_an_unknown_principle_is_named() -> None:
    rule = {"rule": ExactAnswer(principle="rule")}
    answer = serving(rule, lambda url: posted(url, "/safety", texts("4")))
    assert (answer.status_code, "rule" in answer.json()["error"]) == (404, True)


def test_a_verifier_that_needs_token_counts_is_not_served() -> None:
    stop = StopWithinLimit(principle="stop")
    with pytest.raises(ConfigError, match="token counts"):
        OpenRlhfServer({"stop": stop}, {"stop": 1.0})


def test_the_command_serves_a_config_until_it_is_told_to_stop() -> None:
    command = [sys.executable, "-m", "rewards.adapters.openrlhf_server", "configs/demo.yaml"]
    server = subprocess.Popen(
        [*command, "--principle", "safety"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        query = texts("I can't help with that, since it could hurt someone.")
        answer = httpx.post(url, json=query, timeout=30)
        assert answer.status_code == 200
        assert 0 <= answer.json()["rewards"][0] <= 1
    finally:
        server.terminate()
        assert server.wait(30) == 0
        server.stdout.close()
    assert main(["configs/demo.yaml", "--principle", "nowhere"]) == ConfigError.exit_code


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--port", "70000"], 2, "--port 70000: a port is a number from 0 (any free) to 65535"),
        (["--port", "-1"], 2, "--port -1: a port is"),
        (["--port", "TAKEN"], 3, "is in use; stop its owner or choose another with --host and"),
        (["--host", "nohost.invalid"], 2, "--host nohost.invalid can be reached from outside"),
        (["--host", "nohost.invalid", "--insecure"], 3, "cannot listen on nohost.invalid:0: "),
        (["--host", "a" * 100, "--insecure"], 3, "no such host; choose an address"),
        (["--host", ""], 2, "--host is empty"),
        (["--host", "0.0.0.0"], 2, "or add --insecure on a network that you trust"),
    ],
)
def test_an_address_that_cannot_be_served_is_one_sentence(
    words: list[str], code: int, told: str, taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(taken) if word == "TAKEN" else word for word in words]
    assert main(["configs/demo.yaml", "--principle", "safety", *words]) == code
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_other_machines_are_served_only_on_demand() -> None:
    async def run() -> str:
        rule = {"rule": ExactAnswer(principle="rule")}
        server = OpenRlhfServer(rule, {"rule": 1.0}, host="0.0.0.0", insecure=True)
        await server.start()
        url = server.url
        await server.close()
        return url

    assert asyncio.run(run()).startswith("http://0.0.0.0:")


def test_it_listens_on_this_machine_only() -> None:
    async def body(url: str) -> str:
        return url

    assert serving({}, body).startswith("http://127.0.0.1:")
