import json
import random

import numpy as np
import pytest

from curricula.estimates import PRIOR, PRIOR_SAMPLES, Estimates, Kind
from curricula.type_difficulty import TypeDifficulty

DECAY = 0.5
HARD, EASY = Kind("rule", "above 3", ()), Kind("rule", "to 3", ())


def estimates(*kinds: Kind, rows: int = 4) -> Estimates:
    return Estimates(kinds or (EASY,), np.arange(rows) % max(len(kinds), 1), DECAY)


def test_an_outcome_weighs_by_the_version_that_it_tells_of() -> None:
    known = estimates()
    known.note(0, version=3, passed=4, judged=4)
    known.note(0, version=1, passed=0, judged=4)
    known.go_on(3)
    share, weight = known.share_of("rule", "to 3")
    assert weight == pytest.approx(4 + 4 * DECAY**2)
    assert share == pytest.approx(4 / (4 + 4 * DECAY**2))
    known.go_on(4)
    assert known.share_of("rule", "to 3") == (pytest.approx(share), pytest.approx(weight * DECAY))


def test_late_outcomes_of_old_versions_count_as_if_they_had_come_in_time() -> None:
    outcomes = [
        (row, version, (row + version) % 5, 4 + row) for row in range(4) for version in range(6)
    ]
    shuffled = outcomes.copy()
    random.Random(1).shuffle(shuffled)
    in_time, late = estimates(EASY, HARD), estimates(EASY, HARD)
    for known, order in ((in_time, outcomes), (late, shuffled)):
        for outcome in order:
            known.note(*outcome)
        known.go_on(6)
    np.testing.assert_allclose(late.predict_all(), in_time.predict_all(), rtol=1e-12)
    assert late.share_of("rule", "to 3") == pytest.approx(in_time.share_of("rule", "to 3"))


def test_a_late_failure_of_an_old_policy_hardly_moves_what_the_new_one_showed() -> None:
    known = estimates()
    known.note(0, version=10, passed=8, judged=8)
    known.go_on(10)
    before = known.predict(0)
    known.note(0, version=0, passed=0, judged=8)
    assert before - known.predict(0) < 8 * DECAY**10


def test_a_prompt_is_predicted_by_its_kind_until_it_has_outcomes_of_its_own() -> None:
    known = estimates(EASY, HARD)
    assert known.predict(0) == PRIOR
    for _ in range(50):
        known.note(1, version=0, passed=0, judged=8)
        known.note(0, version=0, passed=8, judged=8)
    known.go_on(0)
    assert known.predict(2) > 0.9, "of the kind of row 0, never asked itself"
    assert known.predict(3) < 0.1
    known.note(2, version=0, passed=0, judged=8)
    expected = (0 + PRIOR_SAMPLES * known._prior(EASY)) / (8 + PRIOR_SAMPLES)
    known.go_on(0)
    assert known.predict(2) == pytest.approx(expected, abs=0.05)


def test_all_predictions_are_those_of_single_rows() -> None:
    known = estimates(EASY, HARD)
    known.note(1, version=2, passed=1, judged=3)
    known.note(2, version=1, passed=3, judged=3)
    known.go_on(5)
    np.testing.assert_allclose(known.predict_all(), [known.predict(row) for row in range(4)])


def test_the_product_over_types_predicts_combinations_that_were_never_asked() -> None:
    single = [Kind("rule", "", (name,)) for name in ("short", "french")]
    both = Kind("rule", "", ("french", "short"))
    known = Estimates([*single, both], np.arange(3), DECAY)
    for _ in range(200):
        known.note(0, version=0, passed=9, judged=10)
        known.note(1, version=0, passed=5, judged=10)
    known.go_on(0)
    assert known.predict(2) == pytest.approx(0.9 * 0.5, abs=0.01)


def test_an_outcome_of_several_types_is_shared_so_that_the_product_comes_out_right() -> None:
    both = Kind("rule", "", ("french", "short"))
    known = Estimates([both], np.zeros(2, np.intp), DECAY)
    for _ in range(200):
        known.note(0, version=0, passed=2, judged=8)
    known.go_on(0)
    assert known.predict(1) == pytest.approx(0.25, abs=0.01)


def test_what_verdicts_tell_of_each_type_counts_as_told() -> None:
    both = Kind("rule", "", ("french", "short"))
    known = Estimates([both, Kind("rule", "", ("short",))], np.arange(2), DECAY)
    for _ in range(200):
        known.note(0, 0, passed=0, judged=8, by_type=[("short", (8, 8)), ("french", (8, 0))])
    known.go_on(0)
    assert known.predict(1) > 0.95, "short is easy; it was the other one that failed"
    assert known.predict(0) < 0.05
    known.note(0, 0, passed=0, judged=8, by_type=[("short", (8, 8)), ("short", (8, 8))])
    types = known.dump(["a", "b"])["types"]
    assert types["short"] == [202 * 8, 202 * 8], "twice in one prompt is told twice"


def test_the_composer_reads_the_types_of_a_state() -> None:
    known = estimates(Kind("rule", "", ("short",)), rows=1)
    known.note(0, version=1, passed=3, judged=4)
    known.go_on(2)
    read = TypeDifficulty.load(json.loads(json.dumps(known.dump(["a"]))))
    assert (read.version, read.ranks(["short", "unknown"])) == (2, (1, 0))


def test_what_is_known_goes_over_to_another_run_as_json() -> None:
    known, ids = estimates(EASY, HARD), ["a", "b", "c", "d"]
    known.note(1, version=2, passed=1, judged=3)
    known.note(2, version=4, passed=3, judged=3)
    known.go_on(5)
    carried = json.loads(json.dumps(known.dump(ids)))
    fresh = estimates(EASY, HARD)
    fresh.load(carried, ids)
    np.testing.assert_allclose(fresh.predict_all(), known.predict_all())
    other = estimates(EASY, HARD)
    other.load(carried, ["c", "x", "y", "z"])
    assert other.predict(0) == pytest.approx(known.predict(2), abs=0.05)
