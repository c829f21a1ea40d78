"""Our verifiers behind OpenRLHF's reward protocol: ``--remote_rm_url http://127.0.0.1:PORT/safety``.

``POST /<principle>`` with ``{"query", "prompts", "labels"}`` (three lists of one length) answers
``{"rewards", "scores", "extra_logs"}``, rewards and scores both being our score. If one sample of
the request has no score, the whole answer is an HTTP error with the reasons: 503 for INVALID, 422
for NOT_APPLICABLE, 400 for a request that is none. There is no number for a failure.

There is no authentication and no encryption, so it stays on this machine unless it is told
``--insecure``.

OpenRLHF sends texts, so a verifier sees the templated prompt as one user turn, and neither token
counts nor the reason why generation stopped; a verifier that needs those is refused.

Start it with ``python -m rewards.adapters.openrlhf_server run.yaml --principle safety``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.building import build_verifier
from rewards.deadline import close_with_deadline, score_with_deadline, start_with_deadline
from safeladder import addresses
from safeladder.config_loading import load_config
from safeladder.errors import ConfigError, EnvironmentUnfitError, SafeladderError
from safeladder.ports import Verifier
from safeladder.records import Message, ScoreRequest, Verdict, VerdictStatus

if TYPE_CHECKING:
    from aiohttp import web

MAX_SAMPLES = 1024
MAX_BODY_BYTES = 2**24
NEED_TOKENS = frozenset({"rewards.format:StopWithinLimit"})


class BadRequestError(ValueError):
    """A request that does not follow the protocol: HTTP 400 with this sentence."""


class OpenRlhfServer:
    """Serves verifiers, each at the path of its principle; on this machine only unless
    ``insecure``: whoever reaches another address asks, reads and changes as they like.

    ``stop_texts`` are cut from the end of a query, for example ``<|im_end|>``.
    """

    def __init__(
        self,
        verifiers: Mapping[str, Verifier],
        timeouts_s: Mapping[str, float],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        stop_texts: Sequence[str] = (),
        insecure: bool = False,
    ) -> None:
        for principle, verifier in verifiers.items():
            if verifier.name in NEED_TOKENS:
                raise ConfigError(
                    f"principles.{principle}.verifier: {verifier.name} needs token counts, which "
                    "OpenRLHF does not send; serve another principle"
                )
        self._verifiers = dict(verifiers)
        self._timeouts_s = dict(timeouts_s)
        self._host = host
        self._port = port
        self._stop_texts = tuple(stop_texts)
        self._is_insecure = insecure
        self._counter = itertools.count()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Address once started."""
        if self._runner is None or not self._runner.addresses:
            raise RuntimeError("the server is not started")
        host, port = self._runner.addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self) -> None:
        """Start the verifiers, then listen.

        Raises ``ConfigError`` for an address that may not be used, ``EnvironmentUnfitError`` for
        one that cannot, before any verifier starts.
        """
        from aiohttp import web

        self._check_address()
        for principle, verifier in self._verifiers.items():
            await start_with_deadline(verifier, principle=principle)
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/{principle}", self._handle)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:  # taken since it was looked at
            raise EnvironmentUnfitError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}; choose another "
                "with --port"
            ) from error

    async def close(self) -> None:
        """Stop listening, then close the verifiers."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        for principle, verifier in self._verifiers.items():
            await close_with_deadline(verifier, principle=principle)

    def _check_address(self) -> None:
        if not 0 <= self._port <= 65535:
            raise ConfigError(f"--port {self._port}: a port is a number from 0 (any free) to 65535")
        if not self._host:
            raise ConfigError("--host is empty; name an address of this machine, as 127.0.0.1")
        if not (self._is_insecure or addresses.is_loopback(self._host)):
            raise ConfigError(
                f"--host {self._host} can be reached from outside, and the server has neither "
                "encryption nor a token; leave --host out, or add --insecure on a network that "
                "you trust"
            )
        addresses.check_free(f"{self._host}:{self._port}", "--host and --port")

    async def _handle(self, request: web.Request) -> web.Response:
        from aiohttp import web

        principle = request.match_info["principle"]
        verifier = self._verifiers.get(principle)
        if verifier is None:
            known = ", ".join(sorted(self._verifiers))
            return _error(404, f"no principle {principle!r}; choose from {known}")
        try:
            requests = self._requests(await request.read(), principle)
        except BadRequestError as error:
            return _error(400, str(error))
        verdicts = await score_with_deadline(
            verifier, requests, self._timeouts_s[principle], principle=principle
        )
        if failed := [v for v in verdicts if v.status is not VerdictStatus.OK]:
            return _refusal(verdicts, failed)
        scores = [verdict.score for verdict in verdicts]
        latency = [verdict.latency_ms for verdict in verdicts]
        body = {"rewards": scores, "scores": scores, "extra_logs": {"latency_ms": latency}}
        return web.json_response(body)

    def _requests(self, body: bytes, route: str) -> list[ScoreRequest]:
        queries, prompts, labels = _columns(body)
        call = next(self._counter)
        return [
            ScoreRequest(
                sample_id=f"openrlhf/{call}/{index}",
                attempt=0,
                messages=(Message("user", prompt),),
                response=self._response(index, query, prompt),
                finish_reason="stop",
                num_tokens=0,
                route=route,
                reference=label,
            )
            for index, (query, prompt, label) in enumerate(
                zip(queries, prompts, labels, strict=True)
            )
        ]

    def _response(self, index: int, query: str, prompt: str) -> str:
        if not query.startswith(prompt):
            raise BadRequestError(f"query[{index}] does not begin with prompts[{index}]")
        response = query[len(prompt) :]
        for text in self._stop_texts:
            response = response.removesuffix(text)
        return response


def _columns(body: bytes) -> tuple[list[str], list[str], list[str | None]]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError("the body is no JSON") from None
    if not isinstance(data, dict):
        raise BadRequestError("the body is no JSON object")
    queries, prompts, labels = (_column(data, name) for name in ("query", "prompts", "labels"))
    if not len(queries) == len(prompts) == len(labels):
        raise BadRequestError("query, prompts and labels must have one length")
    if not 1 <= len(queries) <= MAX_SAMPLES:
        raise BadRequestError(f"between 1 and {MAX_SAMPLES} samples, got {len(queries)}")
    if not all(isinstance(text, str) for text in (*queries, *prompts)):
        raise BadRequestError("query and prompts must hold texts")
    if not all(label is None or isinstance(label, str) for label in labels):
        raise BadRequestError("labels must hold texts or nulls")
    return queries, prompts, labels


def _column(data: dict[str, Any], name: str) -> list[Any]:
    column = data.get(name)
    if not isinstance(column, list):
        raise BadRequestError(f"{name} must be a list; query, prompts and labels are needed")
    return column


def _refusal(verdicts: Sequence[Verdict], failed: Sequence[Verdict]) -> web.Response:
    is_invalid = any(verdict.status is VerdictStatus.INVALID for verdict in failed)
    reasons = [
        {
            "index": index,
            "status": verdict.status.value,
            "cause": None if verdict.cause is None else verdict.cause.value,
            "evidence": verdict.evidence,
        }
        for index, verdict in enumerate(verdicts)
        if verdict.status is not VerdictStatus.OK
    ]
    told = f"{len(failed)} of {len(verdicts)} samples have no score"
    return _error(503 if is_invalid else 422, told, reasons)


def _error(status: int, sentence: str, samples: Sequence[Mapping[str, Any]] = ()) -> web.Response:
    from aiohttp import web

    return web.json_response({"error": sentence, "samples": list(samples)}, status=status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns an exit code."""
    parser = argparse.ArgumentParser(description="Serve verifiers to OpenRLHF.")
    parser.add_argument("config", nargs="+", type=Path, help="configuration files, merged in order")
    parser.add_argument("--principle", action="append", help="repeatable; default: all")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    insecure = "let other machines ask: no encryption, no token"
    parser.add_argument("--insecure", action="store_true", help=insecure)
    parser.add_argument("--stop-text", action="append", default=[], help="cut from a query's end")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(options))
    except SafeladderError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    return 0


async def _serve(options: argparse.Namespace) -> None:
    principles = load_config(options.config).principles
    names = options.principle or list(principles)
    if unknown := set(names) - set(principles):
        raise ConfigError(f"--principle: no {', '.join(sorted(unknown))} in `principles`")
    server = OpenRlhfServer(
        {name: build_verifier(name, principles[name]) for name in names},
        {name: principles[name].timeout_s for name in names},
        host=options.host,
        port=options.port,
        stop_texts=options.stop_text,
        insecure=options.insecure,
    )
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    try:
        await server.start()
        for name in names:
            sys.stdout.write(f"{server.url}/{name}\n")
        sys.stdout.flush()
        await stopped.wait()
    finally:
        await server.close()


if __name__ == "__main__":
    sys.exit(main())
