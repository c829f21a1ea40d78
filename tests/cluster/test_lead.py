"""How far generation runs ahead, one step at a time."""

from cluster.lead import Lead
from safeladder.config import ScheduleConfig


def lead_of(max_staleness: int) -> Lead:
    return Lead(ScheduleConfig(groups_per_step=100, max_staleness=max_staleness))


def test_it_starts_from_all_that_admission_allows() -> None:
    lead = lead_of(4)
    assert lead.num_groups == 500
    lead.step_begins(0)  # the first step is always waited for
    assert lead.num_groups == 500


def test_it_falls_by_a_quarter_of_what_waits_beyond_the_next_step() -> None:
    lead = lead_of(4)
    lead.step_begins(300)
    lead.step_begins(300)
    assert lead.num_groups == 450
    lead.step_begins(100)  # the next step's groups are wanted
    assert lead.num_groups == 450


def test_it_rises_by_half_a_step_when_the_learner_had_to_wait() -> None:
    lead = lead_of(4)
    for _ in range(3):
        lead.step_begins(300)
    assert lead.num_groups == 400
    lead.starve()
    lead.step_begins(0)
    assert lead.num_groups == 450


def test_it_never_falls_below_two_steps_nor_rises_above_admission() -> None:
    lead = lead_of(4)
    for _ in range(100):
        lead.step_begins(400)
    assert lead.num_groups == 200
    for _ in range(100):
        lead.starve()
        lead.step_begins(0)
    assert lead.num_groups == 500


def test_below_a_bound_of_2_there_is_nothing_to_choose() -> None:
    for max_staleness in (0, 1):
        lead = lead_of(max_staleness)
        for _ in range(10):
            lead.step_begins(1000)
        assert lead.num_groups == (max_staleness + 1) * 100
