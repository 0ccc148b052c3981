"""Which vectors can be stored, against a slow obvious version."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from service.vectors.rows import StoredDtype
from service.vectors.storing import TOLERANCE, NotStorable, to_storage

DTYPES: tuple[StoredDtype, ...] = ("float16", "float32")
SMALL, TINY = 2.0**-13, 2.0**-23
NUMBERS = st.floats(width=32) | st.floats(-SMALL, SMALL, width=32) | st.floats(-TINY, TINY, width=32)


def is_storable(vector: list[float], dtype: StoredDtype, needs_direction: bool) -> bool:
    limit = 65520 if dtype == "float16" else math.inf  # halfway between the largest float16 and the next step
    if not all(abs(value) < limit for value in vector):
        return False
    stored = [float(np.dtype(dtype).type(value)) for value in vector]
    norm, change = math.hypot(*vector), math.dist(vector, stored)
    return change <= TOLERANCE * norm and (norm >= float(np.float32(1e-38)) or not needs_direction)


@settings(max_examples=300, deadline=None)
@given(hnp.arrays(np.float32, (3, 4), elements=NUMBERS), st.sampled_from(DTYPES), st.booleans())
def test_storage_takes_what_it_does_not_change_and_names_all_others(
    values: NDArray[np.float32], dtype: StoredDtype, needs_direction: bool
) -> None:
    bad = [row for row in range(3) if not is_storable(values[row].tolist(), dtype, needs_direction)]

    if bad:
        with pytest.raises(NotStorable) as refused:
            to_storage(values, dtype, needs_direction=needs_direction)
        assert refused.value.rows.tolist() == bad
        assert all(refused.value.reason_of(row) for row in bad)
    else:
        stored = to_storage(values, dtype, needs_direction=needs_direction)
        assert stored.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(stored, values.astype(dtype))


def test_the_largest_float16_is_storable_and_the_next_is_not() -> None:
    assert to_storage(np.array([[65519.996]], np.float32), "float16")[0, 0] == 65504
    with pytest.raises(NotStorable, match=r"row 0 has a value that is too large for float16"):
        to_storage(np.array([[65520]], np.float32), "float16")


def test_unit_vectors_of_many_dimensions_are_stored() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 4_096)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    assert to_storage(vectors, "float16", needs_direction=True).shape == (50, 4_096)


def test_each_reason_is_given_of_its_row() -> None:
    values = np.ones((5, 3), np.float32) * np.array([[1], [np.nan], [1e6], [1e-8], [0]], np.float32)

    with pytest.raises(NotStorable, match=r"^4 vectors cannot be stored: that of row 1") as refused:
        to_storage(values, "float16", needs_direction=True)

    reasons = {row: refused.value.reason_of(row) for row in refused.value.rows.tolist()}
    words = {1: "not finite", 2: "too large", 3: "so small", 4: "zero"}
    assert reasons.keys() == words.keys()
    assert all(word in reasons[row] for row, word in words.items())


def test_a_zero_is_stored_where_no_direction_is_needed_and_float32_holds_small_ones() -> None:
    assert not to_storage(np.zeros((1, 3), np.float32), "float16").any()
    assert to_storage(np.full((1, 3), 1e-8, np.float32), "float32", needs_direction=True).any()
