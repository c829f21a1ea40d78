from collections import Counter
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from curricula.quotas import Quotas

SHARES = st.dictionaries(
    st.sampled_from("abcdefg"), st.sampled_from([0.01, 0.1, 0.25, 1 / 3, 1.0, 7.0]), min_size=1
)


def drawn(shares: Mapping[str, float], count: int) -> list[str]:
    quotas, counts = Quotas(shares), Counter[str]()
    names = []
    for _ in range(count):
        names.append(quotas.next(counts))
        counts[names[-1]] += 1
    return names


@settings(deadline=None)
@given(SHARES)
def test_after_every_draw_each_kind_is_within_one_of_its_share(shares: dict[str, float]) -> None:
    names, total, counts = drawn(shares, 300), sum(shares.values()), Counter[str]()
    for number, name in enumerate(names, start=1):
        counts[name] += 1
        for kind, share in shares.items():
            assert abs(counts[kind] - number * share / total) < 1 + 1e-9, (number, kind)


def test_shares_are_relative_and_a_share_of_nothing_is_never_drawn() -> None:
    assert Counter(drawn({"safety": 3, "math": 1, "none": 0.0}, 40)) == {"safety": 30, "math": 10}
    assert drawn({"only": 0.2}, 3) == ["only"] * 3


def test_one_in_ten_comes_once_in_every_ten() -> None:
    names = drawn({"focus": 0.9, "rehearsal": 0.1}, 100)
    for start in range(0, 100, 10):
        assert names[start : start + 10].count("rehearsal") == 1
