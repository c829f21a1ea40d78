from pathlib import Path

from benchmarks.coordinator import measure


def test_the_benchmark_plays_a_whole_sound_run(tmp_path: Path) -> None:
    num_events, seconds, cpu_s = measure(tmp_path / "ledger.sqlite", steps=2)
    # A lease, two scores and a reference for each of 2 x 64 groups, and what goes with them.
    assert num_events > 2 * 64 * 4
    assert seconds > 0
    assert cpu_s > 0
