"""The count after a storm: rows and answers against the oracle. Nothing is written or killed any more."""

import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import Database, create_database_engine, driver_connection
from service.domain.gallery.generations import StoredGeneration, stored_generations
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows, Origin
from tests.chaos.storm.oracle import Oracle, Violations
from tests.chaos.storm.traffic import GALLERY
from tests.chaos.storm.values import Kind, Reference, Vectors, Write
from tests.fakes import RecordingQueue

_SAMPLE = 40
_SETTLES_SECONDS = 20.0
_FLAT_BELOW = 50_000  # items; an index of more may be a graph, which misses one of its own vectors now and then
_LEAST_SELF_RECALL = 0.9


@dataclass(frozen=True)
class LiveItem:
    """A live item as the rows have it."""

    external_id: str
    revision: int
    write: Write


@dataclass
class Checks:
    """One run's checks."""

    database_url: str
    urls: list[str]
    blobs: Path
    oracle: Oracle
    reference: Reference
    violations: Violations

    def run(self) -> None:
        database = Database(create_database_engine(self.database_url), RecordingQueue())
        with database.session_scope(snapshot=True) as session:
            live = self._check_items(session)
            gallery_id, active_id = session.execute(text("SELECT id, active_generation_id FROM galleries")).one()
            for generation in stored_generations(session, gallery_id):
                self._check_generation(session, generation, live, is_active=generation.id == active_id)
                if generation.id == active_id:
                    version = generation.version.name
            self._check_nothing_left(session)
        database.engine.dispose()
        for url in self.urls:
            with httpx.Client(base_url=url, timeout=60) as client:
                self._check_answers(client, live, version)

    def _check_items(self, session: Session) -> dict[int, LiveItem]:
        """Compare every item with the oracle; return the live ones by their keys."""
        rows = session.execute(
            text("SELECT id, external_id, revision, deleted_at IS NULL, CAST(metadata->>'token' AS bigint) FROM items")
        ).all()
        live: dict[int, LiveItem] = {}
        unseen = set(self.oracle.records)
        for item_id, external_id, revision, is_live, token in rows:
            unseen.discard(external_id)
            record = self.oracle.records.get(external_id)
            if record is None:
                self.violations.add(f"{external_id} is there and was never written")
            elif not is_live and record.is_live:
                self.violations.add(f"{external_id} was lost: it is deleted, the oracle has {record}")
            elif is_live:
                written = {write.token: write for write in record.candidates if write is not None}
                ever = {write.token: write for write in record.ever}
                if record.is_absent:
                    self.violations.add(f"{external_id} was resurrected with write {token}: {record}")
                elif token not in written:
                    self.violations.add(f"{external_id} has the value of write {token}: {record}")
                if token in ever:
                    live[item_id] = LiveItem(external_id, revision, ever[token])
        for external_id in unseen:
            if self.oracle.records[external_id].is_live:
                self.violations.add(f"{external_id} was lost: it has no row, the oracle has it")
        return live

    def _check_generation(
        self, session: Session, generation: StoredGeneration, live: dict[int, LiveItem], *, is_active: bool
    ) -> None:
        """Exactly one current row per live item, with the values of its last write, and no row besides."""
        name = f"generation {generation.id} ({generation.version.name}, {'active' if is_active else generation.state})"
        rows = _rows_of(session, generation)
        by_item = {int(item_id): position for position, item_id in enumerate(rows.item_id)}
        # One that is still being built is caught up before it is ready, and loses rows of deleted items then.
        if generation.state != "building":
            for item_id in by_item.keys() - live.keys():
                self.violations.add(f"{name} has a row of item {item_id}, which is not live")
        groups: dict[tuple[Origin, Kind], list[tuple[int, Write]]] = defaultdict(list)
        for item_id, item in live.items():
            # Vectors that were imported in the new space alone are in no older generation.
            exempt = generation.state == "building" or (not is_active and item.write.kind == "v2")
            position = by_item.get(item_id)
            current = position is not None and rows.revision[position] == item.revision
            if not current and not exempt:
                found = "no row" if position is None else f"a row of revision {rows.revision[position]}"
                self.violations.add(f"{name} has {found} for {item}")
            if position is not None and current:
                groups[Origin(int(rows.origin[position])), item.write.kind].append((position, item.write))
        for (origin, _), members in groups.items():
            self._check_values(name, generation, rows, origin, members)

    def _check_values(
        self,
        name: str,
        generation: StoredGeneration,
        rows: EmbeddingRows,
        origin: Origin,
        members: list[tuple[int, Write]],
    ) -> None:
        positions = [position for position, _ in members]
        writes = [write for _, write in members]
        expected = self.reference.expected(generation.version.name, origin, writes)
        if expected is None:
            self.violations.add(f"{name} has {origin.label} rows of {len(writes)} writes like {writes[0]}")
            return
        assert rows.side_information is not None
        # An encoder's float32 sums differ with the batch, so what h was given may be one step of float16 off.
        steps = 16 if origin is Origin.TRANSFORMED and writes[0].kind == "image" else 1
        for what, stored, wanted in (
            ("embedding", rows.embedding[positions], expected[0]),
            ("side_information", rows.side_information[positions], expected[1]),
        ):
            for row in np.flatnonzero(~_equal_in_float16(stored, wanted, steps)):
                largest = np.abs(stored[row].astype(np.float32) - wanted[row]).max()
                self.violations.add(f"{name}: {what} of {writes[row]} ({origin.label}) differs by {largest}")

    def _check_nothing_left(self, session: Session) -> None:
        """Dropped generations have no table, and their index files go (the sweep removes them)."""
        kept = set(session.scalars(text("SELECT id FROM generations WHERE state <> 'dropped'")))
        tables = session.scalars(text("SELECT tablename FROM pg_tables WHERE tablename ~ '^embeddings_[0-9]+$'"))
        for table in tables:
            if int(table.removeprefix("embeddings_")) not in kept:
                self.violations.add(f"the table {table} of a dropped generation is still there")
        ends = time.monotonic() + _SETTLES_SECONDS
        while left := _index_files_besides(self.blobs, kept):
            if time.monotonic() > ends:
                self.violations.add(f"files of dropped generations are still there: {left}")
                return
            time.sleep(0.2)

    def _check_answers(self, client: httpx.Client, live: dict[int, LiveItem], version: str) -> None:
        """One API process answers as the rows are."""
        gallery = client.get(GALLERY).json()
        if (gallery["items"], gallery["model_version"]) != (len(live), version):
            self.violations.add(f"{gallery} is said of {len(live)} items under {version}")
        ends = time.monotonic() + _SETTLES_SECONDS
        while (size := _index_size(client)) != len(live):
            if time.monotonic() > ends:
                self.violations.add(f"the index of {client.base_url} has {size} vectors for {len(live)} items")
                break
            time.sleep(0.2)
        records = self.oracle.records
        step = max(1, len(records) // _SAMPLE)
        for external_id in list(records)[::step]:
            answer = client.get(f"{GALLERY}/items/{external_id}")
            token = answer.json()["metadata"]["token"] if answer.is_success else None
            if token not in {None if value is None else value.token for value in records[external_id].candidates}:
                self.violations.add(f"GET of {external_id} gives write {token}: {records[external_id]}")
        self._check_self_searches(client, list(live.values())[:: max(1, len(live) // _SAMPLE)], version, len(live))

    def _check_self_searches(self, client: httpx.Client, items: list[LiveItem], version: str, count: int) -> None:
        """Every item is its own nearest neighbour."""
        missed = []
        for item in items:
            origins = (Origin.TRANSFORMED, Origin.IMPORTED, Origin.ENCODED)
            pairs = [self.reference.expected(version, origin, [item.write]) for origin in origins]
            found = [
                client.post(f"{GALLERY}/search/vectors", json={"vectors": pair[0].tolist(), "k": 3}).json()
                for pair in pairs
                if pair is not None
            ]
            if not any(n["id"] == item.external_id for body in found for n in body["neighbors"][0]):
                missed.append(item)
        if len(missed) > (0 if count < _FLAT_BELOW else (1 - _LEAST_SELF_RECALL) * len(items)):
            self.violations.add(f"{client.base_url} does not find {len(missed)} of {len(items)} items: {missed[:5]}")


def _rows_of(session: Session, generation: StoredGeneration) -> EmbeddingRows:
    query = f"SELECT * FROM {generation.table} ORDER BY item_id"
    return EmbeddingRows.concatenate(list(read_rows(driver_connection(session), query, (), generation.vector_format)))


def _equal_in_float16(stored: Vectors, wanted: Vectors, steps: int) -> NDArray[np.bool_]:
    """Return per row whether it is `wanted` rounded to float16, give or take some steps of its last digit."""
    step = np.maximum(np.spacing(np.abs(wanted).astype(np.float16)).astype(np.float32), 2e-4)
    close: NDArray[np.bool_] = (np.abs(stored.astype(np.float32) - wanted) <= steps * step).all(axis=1)
    return close


def _index_files_besides(blobs: Path, kept: set[int]) -> list[str]:
    names = [path.name for path in (blobs / "indexes").glob("*")]
    numbers = {name: re.search(r"generation_(\d+)", name) for name in names}
    return [name for name, number in numbers.items() if number is not None and int(number[1]) not in kept]


def _index_size(client: httpx.Client) -> int:
    found = re.search(r'^gallery_index_vectors\{gallery="g"\} (\S+)', client.get("/metrics").text, re.MULTILINE)
    return -1 if found is None else int(float(found[1]))
