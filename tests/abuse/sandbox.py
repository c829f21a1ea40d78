"""Runs each attack of ``sandbox_attacks`` in a sandbox and judges from outside what came of it.

``run()`` gives one outcome for each attack; ``python -m tests.abuse.sandbox`` prints them. An
attack is contained if its verdict is INVALID or a number of its own in [0, 1], nothing outside has
changed, no process is left, and the next call of the same verifier gets the honest score.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from rewards.adapters.isolation import descendants
from rewards.adapters.sandbox import SandboxOptions, choose_mode
from rewards.adapters.verl import VerlReward
from safeladder.records import Message, ScoreRequest, Verdict, VerdictStatus
from tests.abuse.outcome import Outcome
from tests.abuse.sandbox_attacks import ATTACKS

FUNCTION = "tests.abuse.sandbox_attacks:compute_score"
HONEST_SCORE = 0.25
CANARY = "alive"


def options(mode: str = "auto", timeout_s: float = 2.0) -> SandboxOptions:
    return SandboxOptions.model_validate(
        {"mode": mode, "timeout_s": timeout_s, "memory_mb": 256, "processes": 24, "file_mb": 32}
    )


def run(names: Collection[str] | None = None, mode: str = "auto") -> list[Outcome]:
    """One outcome for each attack, in order; ``names`` picks some."""
    return asyncio.run(_run([name for name in ATTACKS if names is None or name in names], mode))


async def _run(names: list[str], mode: str) -> list[Outcome]:
    confined = options(mode)
    actual = choose_mode(confined.mode)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".canary-") as folder:
        surroundings = Surroundings(Path(folder))
        os.environ[surroundings.secret] = surroundings.secret
        verifier = VerlReward(principle="abuse", function=FUNCTION, sandbox=confined)
        try:
            await verifier.start()
            return [await _try(verifier, name, actual, surroundings) for name in names]
        finally:
            await verifier.close()
            del os.environ[surroundings.secret]
            surroundings.close()


class Surroundings:
    """What an attack could reach if it got out: a file, a process, a server, a secret."""

    def __init__(self, folder: Path) -> None:
        self.canary = folder / "inner" / "canary"
        self.canary.parent.mkdir()
        self.canary.write_text(CANARY)
        self.bystander = subprocess.Popen(["sleep", "3599"])
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.local = folder / "socket"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.local))
        self.listener.listen()
        self.secret = f"SECRET_{secrets.token_hex(8)}"

    def damage(self) -> str | None:
        """What an attack has changed, if anything; it is put right for the next one."""
        if not self.canary.exists() or self.canary.read_text() != CANARY:
            self.canary.parent.mkdir(exist_ok=True)
            self.canary.write_text(CANARY)
            return "a file outside was changed"
        if self.bystander.poll() is not None:
            return "a process outside was killed"
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return None
        return "a server outside was reached"

    def close(self) -> None:
        self.bystander.kill()
        self.bystander.wait()
        self.server.close()
        self.listener.close()


async def _try(verifier: VerlReward, name: str, mode: str, outside: Surroundings) -> Outcome:
    if ATTACKS[name].is_hostile and mode == "limits":
        return Outcome(name, 1, 0, "not tried: this machine grants no namespaces")
    (verdict,) = await verifier.score([_request(name, outside)])
    left = _left_over(verifier)
    (honest,) = await verifier.score([_request("honest", outside)])
    breach = _breach(name, verdict) or left or outside.damage()
    if breach is None and honest.score != HONEST_SCORE:
        breach = f"the next call got {honest.score} ({honest.evidence})"
    told = verdict.cause.value if verdict.cause else f"its own score {verdict.score}"
    result = f"BREACH: {breach}" if breach else f"{told}: {verdict.evidence}"
    return Outcome(name, 1, int(breach is None), result)


def _request(what: str, outside: Surroundings) -> ScoreRequest:
    return ScoreRequest(
        sample_id="0/0/0",
        attempt=0,
        messages=(Message("user", "?"),),
        response="honest" if what == "honest" else "attack",
        finish_reason="stop",
        num_tokens=1,
        route="abuse",
        reference=what,
        meta={
            "extra_info": {
                "canary": str(outside.canary),
                "port": outside.server.getsockname()[1],
                "local": str(outside.local),
                "outside": [outside.bystander.pid, os.getpid()],
                "secret": outside.secret,
            }
        },
    )


def _breach(name: str, verdict: Verdict) -> str | None:
    if verdict.status is VerdictStatus.INVALID:
        return None
    if ATTACKS[name].is_probe and verdict.score == 1:
        return "it reached what it looked for"
    return None if verdict.status is VerdictStatus.OK else f"unexpected {verdict.status}"


def _left_over(verifier: VerlReward) -> str | None:
    """Processes below a child that are neither its guard nor its host. Wherever they went, they
    are in the child's tree: the guard adopts orphans, a namespace keeps them."""
    for box in verifier.sandboxes:
        if box.pid is not None:
            found = list(descendants(box.pid))
            if len([pid for pid in found if not _is_ours(pid)]) > 0 or len(found) > 2:
                return f"{len(found)} processes are left"
    return None


def _is_ours(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
    return not command or b"rewards.adapters.worker" in command


def main() -> int:
    """Print the table; the exit status is the number of breaches."""
    outcomes = run(set(sys.argv[1:]) or None)
    for o in outcomes:
        mark = "contained" if o.is_contained else "BREACH"
        sys.stdout.write(f"{mark:10} {o.kind:28} {ATTACKS[o.kind].tries:60} {o.told}\n")
    return sum(not o.is_contained for o in outcomes)


if __name__ == "__main__":
    sys.exit(main())
