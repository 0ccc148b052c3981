"""A gallery in files: Parquet (a file or a folder), a .npy or a FAISS index with ids beside.

    file:///gallery.parquet[?key=id&embedding=embedding&side_information=psi]   file:///folder   file:///gallery.npy

The new side is a folder beside, `PATH.NAME/`: each range that is written is a part of it, and `index` makes of the
parts, and of the old file's other columns, a whole file of the old one's kind. A switch gives that the path, and the
old one the path `PATH.before-NAME`. For a file it is atomic: the old one gets a second name (crash point
`connectors.files.named`), then the new one takes the first (`connectors.files.switched`). A folder is renamed twice,
and between the two a reader finds none; whoever opens the store after a crash there does the second.

The order of keys is that of the ids, as text or, where they are integers, as numbers, whatever the order of rows: a
file whose rows are in this order is read without reading anything twice. Ids are held in memory. Nothing tells of
writes; a file that is replaced meanwhile is seen by the next read, and a whole file that was made of its predecessor is
made again by the switch.
"""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from service.connectors.address import Address
from service.connectors.file_kinds import FileKind, Made, files_in, open_file, remove
from service.connectors.key_order import KeyOrder
from service.connectors.store import (
    Description,
    KeyRange,
    NewSide,
    Rows,
    StoreAway,
    StoreRefused,
    Transform,
    Vectors,
    needed,
    refuse_not_finite,
    refuse_other_dims,
)
from service.crash_points import crash_point
from service.durable import sync_folder, write_atomically
from service.vectors.arrow import read_vectors

_RANGE = b"gallery_upgrade.range"  # in a part's metadata: JSON, the ends of its range
_BLOCK_ROWS = 65_536


def connect(address: Address, new: NewSide | None) -> "FileStore":
    """Return the store that a URL names. Raises `StoreRefused`."""
    columns = dict(address.checked([], ["key", "embedding", "side_information"]).parameters)
    return FileStore(address.file, columns, new)


class FileStore:
    """A `service.connectors.store.ExternalStore`."""

    def __init__(self, path: Path, columns: dict[str, str], new: NewSide | None) -> None:
        self._path = path
        self._columns = columns
        self._new = new
        if new is not None and not path.exists() and self._before.exists() and self._whole.exists():
            self._whole.rename(path)  # a switch of a folder that a crash cut in two
        self._files = open_file(self._old_path, columns, path)

    def describe(self) -> Description:
        old = self._old
        return Description(
            rows=len(old.keys),
            embedding_dim=old.embedding_dim,
            side_information_dim=old.side_information_dim,
            metric=old.metric,
            dtype=old.dtype,
            warning=old.warning,
        )

    def bounds(self, rows: int) -> list[str]:
        return self._sorted.keys[rows - 1 :: rows]

    def read(self, keys: KeyRange) -> Rows:
        old, order = self._old, self._sorted
        span = order.span(keys)
        places = order.places[span]
        ascending = np.argsort(places)
        embedding, side = old.take(places[ascending])
        back = np.argsort(ascending)
        return refuse_not_finite(Rows(order.keys[span], embedding[back], None if side is None else side[back]))

    def payloads(self, keys: KeyRange) -> dict[str, dict[str, Any]]:
        old, order = self._old, self._sorted
        span = order.span(keys)
        places = order.places[span]
        ascending = np.argsort(places)
        found = old.payloads(places[ascending])
        named = [order.keys[span][place] for place in ascending]
        return {key: payload for key, payload in zip(named, found, strict=True) if payload}

    def prepare(self) -> None:
        new = needed(self._new)
        self._parts.mkdir(parents=True, exist_ok=True)
        if self._about.exists():
            found = json.loads(self._about.read_text())
            if found != self._dims():
                raise StoreRefused(f"The new side {new.name!r} is there, and holds vectors of {found} numbers.")
            return
        write_atomically(self._about, lambda part: part.write_text(json.dumps(self._dims())))

    def write(self, keys: KeyRange, rows: Rows) -> None:
        refuse_other_dims(rows, needed(self._new))
        if self.is_switched():
            raise StoreRefused("Searches see the new side: it is written by the store's users, and no more from here.")
        order = self._sorted
        there = set(order.keys[order.span(keys)])
        kept = [row for row, key in enumerate(rows.keys) if key in there]
        part = self._parts / f"{time.time_ns():020d}-{uuid.uuid4().hex}.parquet"
        table = _as_table([rows.keys[row] for row in kept], rows.embedding[kept], _some(rows.side_information, kept))
        table = table.replace_schema_metadata({_RANGE: json.dumps([keys.after, keys.upto])})
        write_atomically(part, lambda path: pq.write_table(table, path, compression="none"))
        for older in self._part_files():
            if older.name < part.name and order.contains(keys, _range_of(older)):
                older.unlink(missing_ok=True)

    def read_new(self, keys: KeyRange) -> Rows:
        if self.is_switched():
            files = open_file(self._path, self._columns)
            order = KeyOrder(files)
            span = order.span(keys)
            places = order.places[span]
            ascending = np.argsort(places)
            back = np.argsort(ascending)
            embedding, side = files.take(places[ascending])
            return Rows(order.keys[span], embedding[back], None if side is None else side[back])
        return self._read_parts(keys)

    def changed_keys(self, limit: int) -> list[str]:  # noqa: ARG002 - the protocol's
        return []

    def settle(self, transform: Transform, limit: int) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def index(self) -> None:
        """Make the whole file, unless one is there that was made of the old file and the parts as they are."""
        needed(self._new)
        if self.is_switched() or self._is_whole():
            return
        remove(self._whole)
        made_of = self._made_of()
        making = self._folder / f"making-{uuid.uuid4().hex}{self._path.suffix}"
        try:
            self._old.write(making, self._made())
            for file in files_in(making):
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            making.rename(self._whole)
        finally:
            remove(making)
        sync_folder(self._folder)
        write_atomically(self._made_from, lambda part: part.write_text(json.dumps(made_of)))

    def switch(self, transform: Transform) -> None:  # noqa: ARG002 - the protocol's
        """Give the new file the path: 1. the whole file is made, if need be; 2. the old one gets its second name, or, a
        folder, its other name; 3. the new one takes the path. A crash after 2 leaves a file searched as before; a
        folder away until the store is opened again."""
        if self.is_switched():
            return
        self.index()  # 1.
        remove(self._before)  # a second name that a crash left
        self._give(self._path, self._before)  # 2.
        crash_point("connectors.files.named")
        self._whole.replace(self._path)  # 3.
        crash_point("connectors.files.switched")
        sync_folder(self._path.parent)
        self._forget()

    def switch_back(self, *, forget_written: bool = False) -> None:  # noqa: ARG002 - the protocol's
        if self.is_switched():
            remove(self._whole)  # a second name that a crash left
            self._give(self._path, self._whole)
            self._before.replace(self._path)
            sync_folder(self._path.parent)
            self._forget()

    def is_switched(self) -> bool:
        needed(self._new)
        # What is still to be moved is there, and is not what a switch back gave a second name.
        is_due = self._whole.exists() and not (self._path.exists() and self._whole.samefile(self._path))
        return self._before.exists() and not is_due

    def drop_new(self) -> None:
        if self.is_switched():
            raise StoreRefused("Searches see the new side: switch back before it is dropped.")
        remove(self._before)  # a second name that a crash left
        remove(self._folder)

    def drop_old(self) -> None:
        if not self.is_switched():
            if self._about.exists():
                raise StoreRefused("Searches see the old side: switch before it is dropped.")
            return
        remove(self._folder)
        remove(self._before)
        self._forget()

    def searched(self, query: Vectors, k: int) -> list[str]:
        """Search all rows of the file at the path, block by block; by L2 where the file knows no metric."""
        files = open_file(self._path, self._columns)
        if len(query) != files.embedding_dim:
            raise StoreRefused(f"The query has {len(query)} numbers; the gallery's vectors have {files.embedding_dim}.")
        best: list[tuple[float, int]] = []
        for start in range(0, len(files.keys), _BLOCK_ROWS):
            places = np.arange(start, min(start + _BLOCK_ROWS, len(files.keys)))
            vectors = files.take(places)[0]
            far = -vectors @ query if files.metric == "ip" else np.square(vectors - query).sum(axis=1)
            nearest = np.argsort(far)[:k]
            best = sorted([*best, *zip(far[nearest].tolist(), places[nearest].tolist(), strict=True)])[:k]
        return [files.keys[place] for _, place in best]

    def close(self) -> None:
        """Do nothing: no file is held open."""

    # The places of an upgrade.

    @property
    def _folder(self) -> Path:
        return self._path.with_name(f"{self._path.name}.{needed(self._new).name}")

    @property
    def _before(self) -> Path:
        return self._path.with_name(f"{self._path.name}.before-{needed(self._new).name}")

    @property
    def _parts(self) -> Path:
        return self._folder / "parts"

    @property
    def _about(self) -> Path:
        return self._folder / "dims.json"

    @property
    def _whole(self) -> Path:
        return self._folder / f"whole{self._path.suffix}"

    @property
    def _made_from(self) -> Path:
        return self._folder / "made-from.json"

    @property
    def _old_path(self) -> Path:
        return self._before if self._new is not None and self.is_switched() else self._path

    def _give(self, path: Path, name: Path) -> None:
        """Give a file a second name; a folder, which can have only one, the other instead."""
        if path.is_dir():
            path.rename(name)
        else:
            os.link(path, name)

    # What is where.

    @property
    def _old(self) -> FileKind:
        """The old side as it is now."""
        try:
            state = _state_of(self._old_path, self._path)
        except FileNotFoundError as error:
            raise StoreAway(f"{self._path.name} is not there: is it being replaced?") from error
        if state != self.__dict__.get("_state"):
            self._forget()
            self._files = open_file(self._old_path, self._columns, self._path)
            self._state = state
        return self._files

    @property
    def _sorted(self) -> KeyOrder:
        old = self._old
        if "_ordered" not in self.__dict__:
            self._ordered = KeyOrder(old)
        return self._ordered

    def _forget(self) -> None:
        self.__dict__.pop("_state", None)
        self.__dict__.pop("_ordered", None)

    def _dims(self) -> list[int | None]:
        new = needed(self._new)
        return [new.embedding_dim, new.side_information_dim]

    def _made_of(self) -> list[Any]:
        return [_state_of(self._old_path, self._path), [part.name for part in self._part_files()]]

    def _is_whole(self) -> bool:
        return (
            self._whole.exists()
            and self._made_from.exists()
            and json.loads(self._made_from.read_text()) == json.loads(json.dumps(self._made_of()))
        )

    # Parts.

    def _part_files(self) -> list[Path]:
        """Return the parts, in the order in which they were written."""
        if not self._about.exists():
            raise StoreRefused("There is no new side: prepare it first.")
        return sorted(self._parts.glob("*.parquet"))

    def _read_parts(self, keys: KeyRange) -> Rows:
        """Return what the parts say of a range: of two that say something of a key, the later."""
        new, order = needed(self._new), self._sorted
        found: dict[str, tuple[int, int]] = {}
        tables: list[pa.Table] = []
        seen: list[KeyRange] = []
        for part in self._part_files():
            their = _range_of(part)
            if order.are_apart(keys, their):
                continue
            if not all(order.are_apart(their, other) for other in seen):
                found = {key: place for key, place in found.items() if not order.is_within(key, their)}
            seen.append(their)
            table = pq.read_table(part)
            places = ((key, (len(tables), row)) for row, key in enumerate(table["id"].to_pylist()))
            found |= {key: place for key, place in places if order.is_within(key, keys)}
            tables.append(table)
        ascending = sorted(found, key=order.sort)
        wanted = [found[key] for key in ascending]
        embedding = _gather(tables, "embedding", wanted, new.embedding_dim)
        side = None
        if new.side_information_dim is not None:
            side = _gather(tables, "side_information", wanted, new.side_information_dim)
        return Rows(ascending, embedding, side)

    def _made(self) -> Made:
        """Return what gives the new vectors of keys, which are held in memory for this.

        Raises `StoreRefused` where some of the old side's keys have none."""
        rows = self._read_parts(KeyRange(None, None))
        places = {key: place for place, key in enumerate(rows.keys)}
        missing = [key for key in self._old.keys if key not in places]
        if missing:
            raise StoreRefused(f"{len(missing)} rows have no embedding on the new side: write them before the switch.")

        def made(keys: list[str]) -> tuple[Vectors, Vectors | None]:
            wanted = [places[key] for key in keys]
            return rows.embedding[wanted], _some(rows.side_information, wanted)

        return made


def _state_of(path: Path, named: Path) -> list[Any]:
    """Return what changes when a file, one of a folder, or the ids beside are replaced."""
    beside = named.with_suffix(".ids.txt")
    files = [*files_in(path), *([beside] if beside.exists() else [])]
    return [(file.name, file.stat().st_ino, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _as_table(keys: list[str], embedding: Vectors, side_information: Vectors | None) -> pa.Table:
    columns = {"id": pa.array(keys, pa.string()), "embedding": _lists(embedding)}
    if side_information is not None:
        columns["side_information"] = _lists(side_information)
    return pa.table(columns)


def _lists(vectors: Vectors) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def _some(vectors: Vectors | None, rows: list[int]) -> Vectors | None:
    return None if vectors is None else vectors[rows]


def _range_of(part: Path) -> KeyRange:
    return KeyRange(*json.loads(pq.read_schema(part).metadata[_RANGE]))


def _gather(tables: list[pa.Table], name: str, wanted: list[tuple[int, int]], dim: int) -> Vectors:
    """Return (N, D) vectors by table and row."""
    found = np.empty((len(wanted), dim), np.float32)
    number = np.array([table for table, _ in wanted], np.int64)
    rows = np.array([row for _, row in wanted], np.int64)
    for place, table in enumerate(tables):
        here = np.flatnonzero(number == place)
        if len(here):
            found[here] = read_vectors(table, name, dim)[rows[here]]
    return found
