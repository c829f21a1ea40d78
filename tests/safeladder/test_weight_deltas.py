"""A delta makes one version of a tensor to the next, bit for bit, or says that it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.weight_deltas import DeltaError, apply, encode, num_changed

WIDTHS = [2, 4]


def raw(elements: Any) -> Any:
    return np.ascontiguousarray(elements).view(np.uint8)


def patched(old: Any, delta: Any) -> Any:
    target = old.copy()
    apply(delta, target)
    return target


@given(st.data())
@pytest.mark.parametrize("width", WIDTHS)
def test_any_change_of_any_tensor_comes_back_bit_for_bit(width: int, data: Any) -> None:
    size = data.draw(st.integers(1, 200))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    old = random.integers(0, 256, size * width, dtype=np.uint8)
    new = old.copy()
    elements = new.view(f"<u{width}")
    chosen = data.draw(st.sets(st.integers(0, size - 1), max_size=size))
    for position in chosen:
        step = data.draw(st.sampled_from([1, -1, 127, -127, -128, 128, 32768, 65535]))
        elements[position] += np.array(step % 2**16).astype(elements.dtype)
    delta = encode(old, new, width)
    if delta is None:
        assert np.array_equal(old, new)
    else:
        assert np.array_equal(patched(old, delta), new)
        assert num_changed(delta) == np.count_nonzero(old.view(f"<u{width}") != elements)


@pytest.mark.parametrize("share", [1e-5, 1e-4, 1e-3, 4e-3, 0.02, 0.1, 0.5, 1.0])
def test_a_changed_bfloat16_costs_at_most_three_and_a_half_bytes(share: float) -> None:
    random = np.random.default_rng(0)
    old = random.integers(0, 2**16, 2_000_000, dtype=np.uint16)
    new = old.copy()
    chosen = random.random(old.size) < share
    new[chosen] += random.choice(
        np.array([1, 65535, 300], np.uint16), chosen.sum(), p=[0.49, 0.49, 0.02]
    )
    delta = encode(raw(old), raw(new), 2)
    assert delta is not None
    assert np.array_equal(patched(raw(old), delta), raw(new))
    changed = int(chosen.sum())
    if changed > 100:
        assert delta.size / changed <= 3.5


def test_equal_tensors_have_no_delta() -> None:
    tensor = raw(np.arange(100, dtype=np.uint16))
    assert encode(tensor, tensor.copy(), 2) is None


def test_tensors_of_different_sizes_have_no_delta() -> None:
    with pytest.raises(ValueError, match="8 bytes have no delta to 6"):
        encode(raw(np.zeros(4, np.uint16)), raw(np.zeros(3, np.uint16)), 2)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.6])
def test_no_damage_to_a_delta_writes_outside_its_tensor_or_goes_unnoticed_by_its_sizes(
    share: float,
) -> None:
    """What a flipped byte leaves plausible is the checksums' business; anything else is an error
    and changes nothing."""
    random = np.random.default_rng(1)
    old = random.integers(0, 2**16, 4000, dtype=np.uint16)
    new = old.copy()
    chosen = random.random(old.size) < share
    new[chosen] += 1
    delta = encode(raw(old), raw(new), 2)
    assert delta is not None
    for cut in range(delta.size):
        with pytest.raises(DeltaError):
            apply(delta[:cut], raw(old).copy())
    for position in range(delta.size):
        damaged = delta.copy()
        damaged[position] ^= 0x55
        target = raw(old).copy()
        try:
            apply(damaged, target)
        except DeltaError:
            assert np.array_equal(target, raw(old))
        else:
            assert not np.array_equal(target, raw(new))
