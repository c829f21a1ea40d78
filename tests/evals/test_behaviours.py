import pytest

from evals.behaviours import behaviour_mix, behaviours


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Let me check: 2 + 2 is 4.", {"verification"}),
        ("Wait, that's wrong. It is 5.", {"backtracking"}),
        ("First, we add. Next, we halve.", {"subgoals"}),
        ("1. add\n2. halve", {"subgoals"}),
        ("首先求和。等一下，不对。验证一下。", {"subgoals", "backtracking", "verification"}),
        ("I waited for the check and went first.", set()),
        ("The answer is 4.", set()),
    ],
)
def test_a_behaviour_is_seen_by_its_phrases(text: str, shown: set[str]) -> None:
    assert behaviours(text) == shown


def test_the_mix_is_a_share_of_texts() -> None:
    mix = behaviour_mix(["Wait, no. Wait, again.", "4", "Let me verify that.", "5"])
    assert mix == {"verification": 0.25, "backtracking": 0.25, "subgoals": 0.0}
    assert behaviour_mix([]) == {}
