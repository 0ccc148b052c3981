"""How many bytes the values of an Arrow column take once they are written out, before any is, and what kinds of columns
there are."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def text_bytes(array: pa.Array) -> NDArray[np.int64]:
    """Return (N,) how many bytes the text of each row takes; 0 for nulls."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        entries = np.append(text_bytes(array.dictionary), 0)
        found: NDArray[np.int64] = entries[array.indices.fill_null(len(entries) - 1).to_numpy(zero_copy_only=False)]
        return found
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        views = np.frombuffer(array.buffers()[1] or b"", np.int32).reshape(-1, 4)
        lengths = views[array.offset : array.offset + len(array), 0].astype(np.int64)
        return np.where(array.is_null().to_numpy(zero_copy_only=False), 0, lengths)
    plain: NDArray[np.int64] = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return plain


def written_bytes(column: pa.ChunkedArray) -> int:
    """Return about how many bytes a column takes when each of its values is written out: where many rows share one, as
    those of a dictionary or of overlapping views, it counts for each."""
    return sum(_written_bytes(chunk) for chunk in column.chunks)


def _written_bytes(array: pa.Array) -> int:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _written_bytes(array.storage)
    if is_text(kind) or pa.types.is_binary_view(kind):
        return int(text_bytes(array).sum()) + 8 * len(array)
    if pa.types.is_dictionary(kind):
        return len(array) * _written_bytes(array.dictionary)
    if pa.types.is_struct(kind):
        return 8 * len(array) + sum(_written_bytes(array.field(place)) for place in range(kind.num_fields))
    if pa.types.is_map(kind):
        start, end = _ends(array)
        items = (each.slice(start, end - start) for each in (array.keys, array.items))
        return 8 * len(array) + sum(_written_bytes(each) for each in items)
    if is_view(kind):
        listed = int(pc.sum(pc.list_value_length(array)).as_py() or 0)
        return 8 * len(array) + math.ceil(listed / max(1, len(array.values)) * _written_bytes(array.values))
    if is_list(kind):
        return 8 * len(array) + _written_bytes(array.flatten())
    if pa.types.is_run_end_encoded(kind):
        return len(array) * _written_bytes(array.values)
    return max(int(array.nbytes), 8 * len(array))


def _ends(array: pa.Array) -> tuple[int, int]:
    offsets = array.offsets
    return (offsets[0].as_py() or 0, offsets[len(array)].as_py() or 0) if len(array) else (0, 0)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type has strings, as `service.vectors.arrow.plain_values` gives them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_view(kind: pa.DataType) -> bool:
    """Return whether a column of this type has lists of which several may be of the same values."""
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column of this type has lists, of any kind."""
    plain = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(plain or is_view(kind))
