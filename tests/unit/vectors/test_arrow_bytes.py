"""How many bytes columns take."""

from typing import Any

import pyarrow as pa
import pytest

from service.vectors.arrow_bytes import written_bytes

LONG = "x" * 10_000


@pytest.mark.parametrize(
    ("values", "least"),
    [
        (pa.array([LONG] * 100).dictionary_encode(), 1_000_000),
        (pa.array([{"a": LONG}] * 100, pa.struct([("a", pa.dictionary(pa.int8(), pa.string()))])), 1_000_000),
        (pa.array([[LONG]] * 100, pa.list_(pa.string_view())), 1_000_000),
        (
            pa.ListViewArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([1] * 100, pa.int32()), [LONG]),
            1_000_000,
        ),
        (pa.array([[("a", LONG)]] * 100, pa.map_(pa.string(), pa.string())), 1_000_000),
        (pa.array([1, 2, 3]), 24),
        (pa.array([None, None]), 16),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_what_a_column_takes_when_it_is_written_out_counts_shared_values_for_each_row(values: Any, least: int) -> None:
    taken = written_bytes(pa.chunked_array([values]))

    assert least <= taken < 2 * least + 10_000
    assert written_bytes(pa.chunked_array([values.slice(1, 1)])) < 2 * least / len(values) + 12_000
