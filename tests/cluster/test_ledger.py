import dataclasses
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ledger import Ledger, taken_back
from cluster.transitions import DropReason, GroupState, PendingGroup, Transition
from safeladder.errors import EnvironmentUnfitError, FencedError, NotResumableError
from safeladder.records import GroupHeader, GroupKey

PENDING, LEASED, GENERATED, SCORED, ADMITTED, TRAINED, DROPPED = GroupState
ROAD = (PENDING, LEASED, GENERATED, SCORED, ADMITTED, TRAINED)


def header(key: GroupKey, min_version: int = 0) -> GroupHeader:
    return GroupHeader(
        key=key, attempt=1, fence=1, engine="e", lengths=(3, 4), min_version=min_version,
        max_version=min_version, sha256="ab", generate_s=1.0,
    )  # fmt: skip


def life(
    ordinal: int, until: GroupState, *, step: int = 1, attempt: int = 1, version: int = 0
) -> list[Transition]:
    """The transitions of a group from its issue (or its lease, from attempt 2 on)."""
    key = GroupKey(0, ordinal)
    transitions: list[Transition] = []
    source: GroupState | None = None
    for target in ROAD[: ROAD.index(until) + 1]:
        if source is not None or attempt == 1:
            has_header = target in (GENERATED, SCORED, ADMITTED, TRAINED)
            transitions.append(
                Transition(
                    key=key,
                    source=source,
                    target=target,
                    attempt=attempt,
                    engine=None if target is PENDING else "e",
                    header=header(key, version) if has_header else None,
                    step=step if target in (ADMITTED, TRAINED) else None,
                )
            )
        source = target
    return transitions


def drop(ordinal: int, source: GroupState, reason: DropReason) -> Transition:
    key = GroupKey(0, ordinal)
    return Transition(
        key=key, source=source, target=DROPPED, attempt=1, header=header(key), reason=reason,
        detail="why",
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_a_new_ledger_is_empty_and_its_first_fence_is_1(path: Path) -> None:
    with Ledger.open(path, "run") as ledger:
        assert ledger.raise_fence() == 1
        assert ledger.snapshot().last_key is None
        assert ledger.counts() == {}
        assert ledger.audit() == []


def test_what_was_applied_is_there_after_a_crash(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from cluster.ledger import Ledger\n"
        "from tests.cluster.test_ledger import life, LEASED\n"
        "ledger = Ledger.open(Path(sys.argv[1]), 'run')\n"
        "ledger.apply(life(0, LEASED), ledger.raise_fence())\n"
        "os._exit(9)\n"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run([sys.executable, "-c", code, path], cwd=root, env=env).returncode == 9
    with Ledger.open(path, "run") as ledger:
        assert ledger.counts() == {LEASED: 1}


def test_a_batch_is_applied_whole_or_not_at_all(path: Path) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        wrong = Transition(key=GroupKey(0, 0), source=SCORED, target=ADMITTED, attempt=1, step=1)
        with pytest.raises(FencedError, match="not in the state"):
            ledger.apply([*life(0, LEASED), wrong], fence)
        assert ledger.counts() == {}
        ledger.apply(life(0, LEASED), fence)
        assert ledger.counts() == {LEASED: 1}


@pytest.mark.parametrize(
    "change", [{"source": GENERATED, "target": SCORED}, {"attempt": 2}, {"key": GroupKey(5, 5)}]
)
def test_compare_and_set_refuses_another_state_attempt_or_group(
    path: Path, change: dict[str, object]
) -> None:
    values = {"key": GroupKey(0, 0), "source": LEASED, "target": GENERATED, "attempt": 1}
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger.apply(life(0, LEASED), fence)
        with pytest.raises(FencedError):
            ledger.apply([Transition(**{**values, **change})], fence)  # type: ignore[arg-type]
        ledger.apply([Transition(**values)], fence)  # type: ignore[arg-type]


def test_a_group_cannot_be_issued_twice(path: Path) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger.apply(life(0, PENDING), fence)
        with pytest.raises(FencedError, match="issued twice"):
            ledger.apply(life(0, PENDING), fence)


def test_an_older_driver_is_fenced_off_and_changes_nothing(path: Path) -> None:
    with Ledger.open(path, "run") as old, Ledger.open(path, "run") as new:
        old_fence = old.raise_fence()
        old.apply(life(0, LEASED), old_fence)
        new_fence = new.raise_fence()
        assert new_fence == old_fence + 1
        with pytest.raises(FencedError, match="newer driver") as error:
            old.apply(life(1, LEASED), old_fence)
        assert error.value.exit_code == 75
        with pytest.raises(FencedError, match="newer driver"):
            old.apply([], old_fence)  # it must notice with nothing to write, too
        assert new.counts() == {PENDING: 1}
        new.apply(life(0, LEASED, attempt=2), new_fence)
        assert new.audit() == []


def test_a_resume_keeps_what_the_checkpoint_covers_and_takes_everything_else_back(
    path: Path,
) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger.apply([*life(0, TRAINED), *life(1, TRAINED, step=2, version=1)], fence)
        for ordinal, state in enumerate((PENDING, LEASED, GENERATED, SCORED), start=2):
            ledger.apply(life(ordinal, state), fence)
        ledger.apply(life(6, ADMITTED, step=3), fence)
        dropped = [*life(7, GENERATED), drop(7, GENERATED, DropReason.INVALID)]
        ledger.apply(dropped, fence)
        ledger.raise_fence(checkpoint_step=1)
        snapshot = ledger.snapshot()
        assert [(p.key.ordinal, p.attempt) for p in snapshot.pending] == [
            (1, 2), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2),
        ]  # fmt: skip
        assert (snapshot.trained, snapshot.version) == (1, 1)
        assert snapshot.last_key == GroupKey(0, 7)
        assert snapshot.dropped == {DropReason.INVALID: 1}
        assert ledger.audit(groups_per_step=1, max_staleness=0) == []


def test_a_resume_completes_a_step_whose_checkpoint_is_there_but_whose_rows_are_not(
    path: Path,
) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger.apply([*life(0, ADMITTED), *life(1, SCORED)], fence)
        ledger.raise_fence(checkpoint_step=1)
        assert ledger.trained_groups() == {1: [GroupKey(0, 0)]}
        assert ledger.snapshot().pending == (PendingGroup(GroupKey(0, 1), 2),)
        assert ledger.audit(groups_per_step=1, max_staleness=0) == []


def test_a_checkpoint_of_a_replaced_driver_is_not_part_of_the_run_any_more(path: Path) -> None:
    """It was written while, or after, its successor went on from an earlier one: the groups of the
    steps between are trained in it, and to be trained again in the run."""
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        for step in (1, 2, 3):
            ledger.apply(life(step, TRAINED, step=step), fence)
        ledger.raise_fence(checkpoint_step=2)
    assert taken_back(path, fence=1, step=2) is None
    assert "the driver of fence 2 went on from step 2" in str(taken_back(path, fence=1, step=3))
    assert taken_back(path, fence=2, step=3) is None


def test_a_checkpoint_that_the_ledger_never_saw_is_refused_and_changes_nothing(
    path: Path,
) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger.apply([*life(0, TRAINED), *life(1, LEASED)], fence)
        with pytest.raises(NotResumableError, match=r"checkpoint is of step 9.*up to 1 only"):
            ledger.raise_fence(checkpoint_step=9)
        assert ledger.counts() == {TRAINED: 1, LEASED: 1}
        ledger.apply(life(2, LEASED), fence)


def test_a_ledger_of_another_run_is_refused(path: Path) -> None:
    Ledger.open(path, "one").close()
    with pytest.raises(NotResumableError, match="'one', not of 'two'"):
        Ledger.open(path, "two")


def test_a_ledger_whose_keys_stood_for_other_prompts_is_refused(path: Path) -> None:
    Ledger.open(path, "run", "one digest").close()
    Ledger.open(path, "run", "one digest").close()
    Ledger.open(path, "run").close()
    with pytest.raises(NotResumableError, match=r"curriculum or run\.seed are not"):
        Ledger.open(path, "run", "another")


def test_drops_keep_their_reason_detail_and_length(path: Path) -> None:
    with Ledger.open(path, "run") as ledger:
        transitions = [*life(0, GENERATED), drop(0, GENERATED, DropReason.STALE)]
        ledger.apply(transitions, ledger.raise_fence())
        assert ledger.dropped() == {DropReason.STALE: 1}
    row = sqlite3.connect(path).execute("SELECT reason, detail, num_tokens FROM groups").fetchone()
    assert row == ("stale", "why", 7)


def test_a_full_disk_names_the_file_and_the_way_out(path: Path) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger._connection.execute("PRAGMA max_page_count = 8")
        with pytest.raises(EnvironmentUnfitError, match=r"ledger\.sqlite: the disk is full; free"):
            ledger.apply([t for i in range(500) for t in life(i, SCORED)], fence)
        assert ledger.audit() == []


def test_a_place_that_cannot_hold_a_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnfitError, match="nowhere"):
        Ledger.open(tmp_path / "nowhere" / "ledger.sqlite", "run")
    broken = tmp_path / "broken.sqlite"
    broken.write_text("this is no database, although it is long enough to be one" * 20)
    with pytest.raises(EnvironmentUnfitError, match=r"broken\.sqlite"):
        Ledger.open(broken, "run")


def test_a_ledger_that_another_process_holds_is_reported_as_such(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.ledger.BUSY_TIMEOUT_S", 0.01)
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(FencedError, match="another process holds"):
            ledger.apply(life(0, LEASED), fence)
        other.execute("ROLLBACK")
        ledger.apply(life(0, LEASED), fence)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("UPDATE groups SET state = 'leased' WHERE ordinal = 0", "not the end of its history"),
        ("DELETE FROM groups WHERE ordinal = 0", "an issued group is missing"),
        ("DELETE FROM groups WHERE ordinal = 0", "ordinals of a pass were skipped"),
        (
            "INSERT INTO history (epoch, ordinal, source, target, attempt, fence, step) "
            "VALUES (0, 0, 'trained', 'trained', 1, 1, 2)",
            "a transition that does not exist: trained → trained",
        ),
        (
            "INSERT INTO history (epoch, ordinal, source, target, attempt, fence, step, "
            "min_version) VALUES (0, 0, 'admitted', 'trained', 1, 1, 2, 0)",
            "trained twice",
        ),
        ("UPDATE history SET source = 'leased' WHERE target = 'scored'", "where the one before"),
        ("UPDATE history SET fence = 7 WHERE id = 2", "not bear the fence of the driver in charge"),
        ("DELETE FROM history WHERE source IS NULL", "states do not add up to the ordinals"),
        (
            "UPDATE groups SET epoch = 1 WHERE ordinal = 1",
            "ordinals of a pass were skipped: pass 1",
        ),
        ("UPDATE groups SET epoch = 2", "a pass was skipped, or left before its end: pass 2"),
        ("UPDATE groups SET num_tokens = NULL", "lacks its length, versions or checksum"),
        ("UPDATE groups SET sha256 = NULL WHERE ordinal = 1", "versions or checksum: 0/1 (1 in"),
        ("UPDATE groups SET step = NULL WHERE ordinal = 1", "a trained group has no step: 0/1"),
        (
            "UPDATE run SET fence = 2",
            "do not lead up to the fence in force: fence 2 after 1 starts",
        ),
        ("DELETE FROM starts", "do not lead up to the fence in force: fence 1 after 0 starts"),
        ("UPDATE history SET attempt = 3 WHERE id = 2", "an attempt number fell"),
        ("UPDATE groups SET reason = 'stale' WHERE ordinal = 0", "a drop has no reason"),
        ("UPDATE groups SET step = 2 WHERE ordinal = 0", "a step is missing"),
        ("UPDATE groups SET step = 1 WHERE ordinal = 1", "a step has not 1 groups: step 1 has 2"),
        ("UPDATE history SET min_version = -3 WHERE target = 'trained'", "staleness above 1"),
    ],
)
def test_the_audit_finds_what_is_broken(path: Path, damage: str, sentence: str) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger.apply([*life(0, TRAINED), *life(1, TRAINED, step=2, version=1)], fence)
        assert ledger.audit(groups_per_step=1, max_staleness=1) == []
        ledger._connection.execute(damage)
        found = ledger.audit(groups_per_step=1, max_staleness=1)
        assert any(sentence in violation for violation in found), found


def test_the_audit_sees_a_write_of_a_driver_that_was_replaced(path: Path) -> None:
    """The new driver has written nothing yet, so no fence falls."""
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger.apply(life(0, TRAINED), fence)
        ledger.raise_fence(checkpoint_step=1)
        assert ledger.audit() == []
        ledger._connection.execute("UPDATE run SET fence = 1")  # the guard of `apply` is gone
        ledger.apply(life(1, LEASED), fence)
        ledger._connection.execute("UPDATE run SET fence = 2")
        found = ledger.audit()
    assert [sentence.partition(":")[0] for sentence in found] == [
        "a group is still on its way with a driver that was replaced",
        "a write does not bear the fence of the driver in charge",
    ]


def test_the_audit_sees_a_step_that_a_restart_should_have_taken_back(path: Path) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger.apply([*life(0, TRAINED), *life(1, TRAINED, step=2, version=1)], fence)
        ledger.raise_fence(checkpoint_step=2)
        ledger._connection.execute("UPDATE starts SET checkpoint_step = 1 WHERE fence = 2")
        (found,) = ledger.audit()
    assert found == "a step later than the checkpoint outlived a restart: 0/1 of step 2 (1 in all)"


def test_the_audit_sees_a_second_pass_that_began_before_the_first_one_ended(path: Path) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        ledger.apply([t for ordinal in range(3) for t in life(ordinal, PENDING)], fence)
        for epoch, ordinal in ((1, 0), (1, 1), (1, 2), (2, 0)):
            issue = Transition(key=GroupKey(epoch, ordinal), source=None, target=PENDING, attempt=1)
            ledger.apply([issue], fence)
        assert ledger.audit() == []
        for table in ("groups", "history"):
            ledger._connection.execute(f"DELETE FROM {table} WHERE epoch = 1 AND ordinal = 2")
        assert ledger.audit() == ["a pass was skipped, or left before its end: pass 1 (1 in all)"]


@pytest.mark.parametrize("source", ROAD[1:-1])
def test_a_drop_keeps_its_length_from_every_state_and_the_audit_insists(
    path: Path, source: GroupState
) -> None:
    is_generated = source is not LEASED
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        dropped = drop(0, source, DropReason.FAILED)
        dropped = dropped if is_generated else dataclasses.replace(dropped, header=None)
        ledger.apply([*life(0, source), dropped], fence)
        assert ledger.audit() == []
        (length,) = ledger._connection.execute("SELECT num_tokens FROM groups").fetchone()
        assert length == (7 if is_generated else None)
        ledger._connection.execute("UPDATE groups SET num_tokens = NULL")
        sentence = "a group was dropped after its generation without its length: 0/0 (1 in all)"
        assert ledger.audit() == ([sentence] if is_generated else [])


def test_a_ledger_in_memory_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger.open(None, "run") as ledger:
        ledger.apply(life(0, TRAINED), ledger.raise_fence())
        assert ledger.trained_groups() == {1: [GroupKey(0, 0)]}
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_knows_the_staleness_of_all_that_was_trained_before(path: Path) -> None:
    with Ledger.open(path, "run") as ledger:
        fence = ledger.raise_fence()
        for ordinal, (step, version) in enumerate([(1, 0), (2, 0), (2, 1), (3, 1)]):
            ledger.apply(life(ordinal, TRAINED, step=step, version=version), fence)
        ledger.raise_fence(checkpoint_step=2)
        assert ledger.snapshot().trained_by_staleness == {0: 2, 1: 1}
