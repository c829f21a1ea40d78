"""Functions that fail, hang or lie: each sample's verdict says so, and the next call works."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rewards.adapters import sandbox
from rewards.adapters.isolation import descendants
from rewards.adapters.sandbox import Sandbox, SandboxOptions, choose_mode, has_namespaces
from rewards.adapters.scores import Scale
from rewards.adapters.syscalls import filter_program
from rewards.judging import UnjudgedError
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause, VerdictStatus
from tests.rewards.adapters.running import FUNCTIONS, built, scored, verdicts
from tests.rewards.samples import sample

pytestmark = pytest.mark.process

TOLD = f"{FUNCTIONS}/verl_rewards.py:as_told"
MODES = ["limits", pytest.param("namespaces", marks=pytest.mark.skipif(
    not has_namespaces(), reason="this kernel grants no user namespaces"))]  # fmt: skip


def job(what: str) -> dict[str, Any]:
    return {"data_source": "", "solution_str": what, "ground_truth": None, "extra_info": {}}


def box(mode: Any = None, function: str = TOLD, **options: Any) -> Sandbox:
    confined = SandboxOptions.model_validate({"timeout_s": 20, **options})
    return Sandbox(function, "verl", confined, mode or choose_mode("auto"))


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("mode", MODES)
def test_failures_are_of_their_own_sample(mode: str) -> None:
    told = {
        "half": (0.5, None, "returned 0.5"),
        "raise": (None, InvalidCause.ERROR, "KeyError: 'boxed'"),
        "none": (None, InvalidCause.ABSTAIN, "None"),
        "nan": (None, InvalidCause.MALFORMED, "NaN"),
        "infinite": (None, InvalidCause.OUT_OF_RANGE, "inf"),
        "beyond": (None, InvalidCause.OUT_OF_RANGE, "1.0000001 is outside [0, 1]"),
        "below": (None, InvalidCause.OUT_OF_RANGE, "-0.5"),
        "text": (None, InvalidCause.MALFORMED, "'1.0' is no number"),
        "list": (None, InvalidCause.MALFORMED, "[1.0] is no number"),
        "no score": (None, InvalidCause.MALFORMED, "without 'score'"),
        "score none": (None, InvalidCause.ABSTAIN, "None"),
        "unknown": (None, InvalidCause.ERROR, "KeyError"),
        "true": (1.0, None, "returned True"),
        "one": (1.0, None, "returned 1"),
    }
    requests = [sample(what, sample_id=f"0/0/{k}") for k, what in enumerate(told)]
    verifier = built("verl:VerlReward", "verl_rewards.py:as_told", sandbox={"mode": mode})
    assert verifier.version.endswith(f"/{mode}")
    for verdict, (score, cause, words) in zip(
        verdicts(verifier, *requests), told.values(), strict=True
    ):
        assert (verdict.score, verdict.cause) == (score, cause)
        assert words in str(verdict.evidence)
        assert verdict.status is (VerdictStatus.INVALID if cause else VerdictStatus.OK)


def test_a_group_of_none_needs_no_call() -> None:
    assert verdicts(built("trl:TrlReward", "trl_rewards.py:reward_words")) == []


def test_calls_run_side_by_side_in_several_workers() -> None:
    options = {"timeout_s": 2.0, "workers": 3}
    verifier = built("verl:VerlReward", "verl_rewards.py:as_told", sandbox=options)

    async def run() -> float:
        await verifier.start()
        started = time.perf_counter()
        found = await scored(verifier, [sample("hang"), sample("hang"), sample("half")])
        assert [v.cause for v in found] == [InvalidCause.TIMEOUT] * 2 + [None]
        return time.perf_counter() - started

    assert asyncio.run(run()) < 4


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_is_killed_leaves_a_working_sandbox(mode: str) -> None:
    async def run() -> None:
        child = box(mode, timeout_s=0.5)
        try:
            await child.start()
            with pytest.raises(UnjudgedError, match=r"within 0\.5 s") as caught:
                await child.call(job("hang"))
            assert caught.value.cause is InvalidCause.TIMEOUT
        finally:
            await child.close()

    asyncio.run(run())


@pytest.mark.parametrize("mode", MODES)
def test_a_caller_that_goes_away_takes_all_processes_with_it(mode: str) -> None:
    async def run() -> None:
        child = box(mode)
        try:
            await child.start()
            assert child.pid is not None
            call = asyncio.create_task(child.call(job("hang")))
            await asyncio.sleep(0.5)
            family = [child.pid, *descendants(child.pid)]
            assert len(family) == 3, "guard, host, runner"
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert all(is_gone(pid) for pid in family)
            assert await child.call(job("half")) == 0.5
        finally:
            await child.close()

    asyncio.run(run())


@pytest.mark.parametrize("mode", MODES)
def test_everything_dies_with_the_parent(mode: str) -> None:
    code = (
        "import asyncio\n"
        "from tests.rewards.adapters.test_sandbox import box, job, descendants\n"
        "async def main():\n"
        f"    child = box({mode!r}, timeout_s=600)\n"
        "    await child.start()\n"
        "    call = asyncio.create_task(child.call(job('hang')))\n"
        "    await asyncio.sleep(0.5)\n"
        "    print(child._scratch, child.pid, *descendants(child.pid), flush=True)\n"
        "    await call\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    scratch, *pids = parent.stdout.readline().split()
    family = [os.pidfd_open(int(pid)) for pid in pids]
    try:
        assert len(family) == 3
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        for process in family:
            assert select.select([process], [], [], 10)[0], "a process outlived its parent"
        assert not Path(scratch).exists()
    finally:
        for process in family:
            os.close(process)
        parent.stdout.close()


def test_a_child_that_died_is_replaced() -> None:
    async def run() -> None:
        child = box()
        try:
            await child.start()
            assert child.pid is not None
            host = next(descendants(child.pid))
            os.kill(host, signal.SIGKILL)
            with pytest.raises(UnjudgedError, match="broke off"):
                await child.call(job("half"))
            assert await child.call(job("half")) == 0.5
        finally:
            await child.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        ({"nonce": "0" * 32, "value": 1.0}, InvalidCause.ERROR),
        ({"value": 1.0}, InvalidCause.ERROR),
        ([1.0], InvalidCause.ERROR),
        ({"nonce": "right"}, InvalidCause.MALFORMED),
        ({"nonce": "right", "cause": "because", "detail": ""}, InvalidCause.MALFORMED),
    ],
)
def test_an_answer_that_is_not_to_this_call_is_no_score(
    reply: Any, cause: InvalidCause, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = sandbox._ask

    async def forged(line: Any, message: Any) -> Any:
        if "nonce" not in message:
            return await ask(line, message)
        right = isinstance(reply, dict) and reply.get("nonce") == "right"
        return reply | {"nonce": message["nonce"]} if right else reply

    async def run() -> None:
        child = box()
        try:
            await child.start()
            first = child.pid
            monkeypatch.setattr(sandbox, "_ask", forged)
            with pytest.raises(UnjudgedError) as caught:
                await child.call(job("half"))
            assert caught.value.cause is cause
            monkeypatch.setattr(sandbox, "_ask", ask)
            assert await child.call(job("half")) == 0.5
            assert child.pid != first, "the child that lied was asked again"
        finally:
            await child.close()

    asyncio.run(run())


def test_a_closed_sandbox_stays_closed_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))

    async def run() -> None:
        child = box()
        await child.start()
        folders = os.listdir(tmp_path)  # noqa: PTH208
        await child.close()
        assert (len(folders), os.listdir(tmp_path)) == (1, [])  # noqa: PTH208
        with pytest.raises(VerifierUnavailableError, match="closed"):
            await child.call(job("half"))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended without an answer"),
        ("import time; time.sleep(600)", r"not imported within 0\.7 s"),
        ("reward = 3", "TypeError"),
        ("other = 3", "AttributeError"),
    ],
)
def test_a_function_that_can_not_be_imported_is_unavailable(
    source: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(source)
    limit = 0.7 if "sleep" in source else 60

    async def run() -> None:
        child = box(function=f"{file}:reward", start_timeout_s=limit)
        with pytest.raises(VerifierUnavailableError, match=words):
            await child.start()
        assert child.pid is None

    asyncio.run(run())


def test_a_slow_import_does_not_count_as_the_first_call(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text("import time; time.sleep(1)\ndef reward(**_): return 1.0\n")

    async def run() -> Any:
        child = box(function=f"{file}:reward", timeout_s=0.9)
        try:
            return await child.call(job(""))
        finally:
            await child.close()

    assert asyncio.run(run()) == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_what_a_module_opened_on_import_stays_open(mode: str, tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("0.5")
    file = tmp_path / "opens.py"
    file.write_text(
        f"answers = open({str(tmp_path / 'answers')!r})\n"
        "def reward(**_):\n    answers.seek(0)\n    return float(answers.read())\n"
    )

    async def run() -> Any:
        child = box(mode, function=f"{file}:reward")
        try:
            return [await child.call(job("")) for _ in range(2)]
        finally:
            await child.close()

    assert asyncio.run(run()) == [0.5, 0.5]


def test_the_version_covers_code_range_and_confinement(tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text("def f(**_): return 1.0\n")

    def version(**options: Any) -> str:
        return str(built("verl:VerlReward", f"{file}:f", **options).version)

    base = version()
    assert base == version()
    assert len({base, version(high=2), version(optional=True), version(sandbox={"network": True}),
                version(sandbox={"mode": "limits"})}) == 5  # fmt: skip
    file.write_text("def f(**_): return 0.5\n")
    assert version() != base


def test_ranges_are_rescaled_and_never_clipped() -> None:
    assert [Scale(-1, 3).judgment(v).score for v in (-1, 0, 3)] == [0, 0.25, 1]
    for value in (3.0001, -1.0001, 10**400, float("inf")):
        with pytest.raises(UnjudgedError) as caught:
            Scale(-1, 3).judgment(value)
        assert caught.value.cause is InvalidCause.OUT_OF_RANGE
    for low, high in ((1, 1), (-1e308, 1e308), (float("-inf"), 0), (0, float("nan"))):
        with pytest.raises(ValueError, match="must be below"):
            Scale(low, high)


def test_a_named_mode_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda _: None)
    monkeypatch.setattr(sandbox, "has_namespaces", lambda: False)
    assert choose_mode("auto") == "limits"
    for mode in ("bwrap", "namespaces"):
        with pytest.raises(ValueError, match=mode):
            choose_mode(mode)
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert choose_mode("auto") == "bwrap"


def test_unknown_processors_have_no_filter() -> None:
    assert filter_program("riscv64", network=False) is None
    program = filter_program("x86_64", network=False)
    assert program is not None
    assert len(program) % 8 == 0
    assert len(program) > len(filter_program("x86_64", network=True) or b"")
