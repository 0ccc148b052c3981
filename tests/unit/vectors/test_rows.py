"""Which values can be stored, and what origins are called."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from service.vectors.rows import NotStorable, Origin, StoredDtype, to_storage

DTYPES: tuple[StoredDtype, ...] = ("float16", "float32")


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)), st.sampled_from(DTYPES))
def test_storage_takes_what_rounds_to_a_finite_value_and_names_the_first_that_does_not(
    values: NDArray[np.float32], dtype: StoredDtype
) -> None:
    limit = 65520 if dtype == "float16" else np.inf  # halfway between the largest float16 and the next step
    bad = [row for row in range(3) if not all(abs(value) < limit for value in values[row].tolist())]

    if not bad:
        stored = to_storage(values, dtype)
        assert stored.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(stored, values.astype(dtype))
        return
    with pytest.raises(NotStorable, match=rf"of row {bad[0]} is (not finite|too large for float16)"):
        to_storage(values, dtype)


def test_the_largest_float16_is_storable_and_the_next_is_not() -> None:
    assert to_storage(np.array([[65519.996]], np.float32), "float16")[0, 0] == 65504
    with pytest.raises(NotStorable, match="row 0 is too large for float16"):
        to_storage(np.array([[65520]], np.float32), "float16")


def test_origins_have_labels() -> None:
    assert [origin.label for origin in Origin] == ["encoded", "imported", "transformed", "backfilled"]
    assert [int(origin) for origin in Origin] == [1, 2, 3, 4]
