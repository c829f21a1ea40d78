"""Orders of constraints by difficulty: the measure CDDI, and uniform draws of a given value.

An order is told as *ranks*: [n] the difficulty rank of the constraint at each slot, 0 the hardest.
With k pairs that stand easy before hard, of n (n - 1) / 2 pairs in all,

    CDDI = (pairs - 2 k) / pairs

(arXiv 2502.17204): +1 is hard to easy, -1 easy to hard. It is Kendall's tau against hard to easy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

Ranks = tuple[int, ...]

LEVELS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.05, -0.05, -0.2, -0.4, -0.6, -0.8, -1.0)
"""Labels of the published levels; with 7 constraints the exact value is the nearest k's."""


def count_inversions(ranks: Sequence[int]) -> int:
    """Pairs of slots whose constraints stand easy before hard. Raises ``ValueError`` unless
    ``ranks`` is a permutation of 0 to n - 1.

    >>> count_inversions((2, 0, 1))
    2
    """
    require_permutation(ranks)
    return sum(earlier > later for slot, earlier in enumerate(ranks) for later in ranks[slot + 1 :])


def cddi(ranks: Sequence[int]) -> float:
    """In [-1, 1]; 1 for a single constraint, whose order says nothing.

    >>> cddi((0, 1, 2)), cddi((2, 1, 0)), cddi((1, 0, 2))
    (1.0, -1.0, 0.3333333333333333)
    """
    pairs = num_pairs(len(ranks))
    return (pairs - 2 * count_inversions(ranks)) / pairs if pairs else 1.0


def inversions_for(label: float, num_constraints: int) -> int:
    """The k whose CDDI is nearest to a label. Raises ``ValueError`` outside [-1, 1].

    >>> [inversions_for(label, 7) for label in LEVELS]
    [0, 2, 4, 6, 8, 10, 11, 13, 15, 17, 19, 21]
    """
    if not -1 <= label <= 1:
        raise ValueError(f"a CDDI is in [-1, 1], got {label}")
    return round((1 - label) * num_pairs(num_constraints) / 2)


def num_pairs(num_constraints: int) -> int:
    """n (n - 1) / 2, the largest number of inversions."""
    return num_constraints * (num_constraints - 1) // 2


@lru_cache(maxsize=4096)
def count_orders(num_constraints: int, inversions: int) -> int:
    """How many orders have exactly so many inversions.

    >>> [count_orders(7, k) for k in (0, 2, 4, 6, 8, 10)]
    [1, 20, 98, 259, 455, 573]
    """
    if num_constraints == 0:
        return int(inversions == 0)
    largest = min(inversions, num_constraints - 1)
    return sum(count_orders(num_constraints - 1, inversions - k) for k in range(largest + 1))


def draw_order(num_constraints: int, inversions: int, rng: Random) -> Ranks:
    """Ranks by slot, uniform over all orders with exactly so many inversions. Raises ``ValueError``
    if there are none.

    Slot by slot: the constraint that leaves k harder ones for later makes k inversions, and is
    drawn with the share of orders that can still follow.
    """
    if not 0 <= inversions <= num_pairs(num_constraints):
        raise ValueError(f"no order of {num_constraints} constraints has {inversions} inversions")
    left = list(range(num_constraints))
    ranks = []
    while left:
        ticket = rng.randrange(count_orders(len(left), inversions))
        for k in range(len(left)):
            following = count_orders(len(left) - 1, inversions - k) if k <= inversions else 0
            if ticket < following:
                break
            ticket -= following
        ranks.append(left.pop(k))
        inversions -= k
    return tuple(ranks)


def require_permutation(numbers: Sequence[int]) -> None:
    """Raise ``ValueError`` unless the numbers are 0 to n - 1, each once."""
    ok = all(isinstance(one, int) and not isinstance(one, bool) for one in numbers)
    if not ok or sorted(numbers) != list(range(len(numbers))):
        raise ValueError(
            f"{list(numbers)} is no permutation: it needs 0 to {len(numbers) - 1}, each once"
        )


def inverse(numbers: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes one.

    >>> inverse((2, 0, 1))
    (1, 2, 0)
    """
    require_permutation(numbers)
    places = [0] * len(numbers)
    for place, number in enumerate(numbers):
        places[number] = place
    return tuple(places)
