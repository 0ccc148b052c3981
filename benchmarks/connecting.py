"""A pgvector table that is upgraded in place while it is written to: seconds of each phase, and what became of rows.

    python -m benchmarks.connecting --rows 1000000

The table has random embeddings and side-information, and no index but its key's. An API process and a worker upgrade it
by an h and g of the paper's size. Meanwhile a writer inserts, replaces and deletes rows, each in a transaction of its
own, until the columns are switched. Then every row is compared with what the writer was told was committed, and the new
columns with what h and g give of the old ones.
"""

import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import numpy as np
import psycopg
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.processes import Api, MemoryTrace, api_process, register_upgradable, worker_processes
from benchmarks.setting import machine, paper_sized_transformation, worker_with_servers
from models.artifacts import save_network
from models.backbones import ConvEncoder
from models.preprocessing import Preprocessing
from service.settings import StoreSetting

_PORT = 18_543
_ROWS_AT_ONCE = 20_000
_LOOK_EVERY_SECONDS = 0.5
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_TOLERANCE = 0.01  # of a vector's norm, as the service's own verification


def run(
    rows: int = 1_000_000,
    dim: Annotated[int, typer.Option(help="Of embedding and side-information, old and new.")] = 128,
    writes_per_second: int = 50,
) -> None:
    """Print the table."""
    with worker_with_servers() as parts:
        assert parts.settings.database_url is not None
        url = parts.settings.database_url.replace("+psycopg", "")
        named = f"{url}{'&' if '?' in url else '?'}table=shop_items&key=id&embedding=phi&side_information=psi"
        parts.settings.stores = {"shop": StoreSetting(url=named)}
        with psycopg.connect(url, autocommit=True) as connection:
            _fill(connection, rows, dim)
        with worker_processes(parts, 1) as workers, api_process(parts, _PORT) as api:
            networks = {name: paper_sized_transformation(dim, seed) for seed, name in enumerate("hg")}
            encoder = save_network(ConvEncoder(8, dim))
            saved = {name: save_network(network) for name, network in networks.items()}
            register_upgradable(api.client, encoder, saved, Preprocessing(32, (0.5,) * 3, (0.25,) * 3), dim)
            writer = Writer(url, rows, dim, writes_per_second)
            with MemoryTrace({"worker": workers}, every_seconds=0.1) as trace:
                time.sleep(1.0)
                began = time.time()
                with ThreadPoolExecutor(1) as pool:
                    writing = pool.submit(writer.write_until_switched)
                    try:
                        phases = _upgrade(api)
                    finally:
                        writer.stopping.set()
                    writing.result()
            idle, peak = trace.peak("worker", 0, began), trace.peak("worker", began, time.time())
        with psycopg.connect(url) as connection:
            found = _compare(connection, writer, networks, dim)

    console = Console(width=130)
    table = Table("rows", "writes", *phases, *found)
    seconds = [f"{value:.0f} s" for value in phases.values()]
    table.add_row(f"{rows:,}", f"{writer.writes:,}", *seconds, *(f"{value:,}" for value in found.values()))
    console.print(table)
    console.print(f"worker: {idle / 2**20:.0f} MiB idle, {(peak - idle) / 2**20:.0f} MiB more at most; {machine()}")


def _upgrade(api: Api) -> dict[str, float]:
    """Upgrade the store until it is live; return the seconds of each state."""
    wanted = {"store": "shop", "from_version": "v1", "to_version": "v2"}
    began = time.monotonic()
    upgrade = api.client.post("/v1/external-upgrades", json=wanted).raise_for_status().json()
    path = f"/v1/external-upgrades/{upgrade['id']}"
    seconds: dict[str, float] = {}
    for state in ("transforming", "verifying", "ready", "live"):
        if state == "live":
            api.client.post(f"{path}/cutover", json={}).raise_for_status()
        before = time.monotonic()
        seconds[f"until {state}"] = _reach(api.client, path, state) - before
    return {**seconds, "in all": time.monotonic() - began}


def _reach(client: httpx.Client, path: str, state: str) -> float:
    """Wait for a state, or a later one; return when it was seen."""
    order = ["planned", "transforming", "verifying", "ready", "live"]
    while True:
        upgrade: dict[str, Any] = client.get(path).raise_for_status().json()
        if order.index(upgrade["state"]) >= order.index(state):
            return time.monotonic()
        time.sleep(_LOOK_EVERY_SECONDS)


@dataclass
class Writer:
    """Writes rows until the columns are switched; `written` is the number of the last write of each key, None where it
    was a deletion. The vectors of a write are drawn by its number."""

    url: str
    rows: int
    dim: int
    per_second: int
    writes: int = 0
    written: dict[int, int | None] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    def write_until_switched(self) -> None:
        with psycopg.connect(self.url) as connection:
            while self._write(connection) and not self.stopping.wait(1 / self.per_second):
                pass

    def _write(self, connection: psycopg.Connection) -> bool:
        """Write once in a transaction that a switch waits for; return False where the columns were switched before."""
        chosen = random.Random(self.writes)
        key = chosen.randrange(self.rows) if chosen.random() < 0.7 else self.rows + self.writes
        number = None if chosen.random() < 0.2 else self.rows + self.writes
        with connection.transaction():
            connection.execute("LOCK TABLE shop_items IN ROW EXCLUSIVE MODE")
            if _old_columns(connection) != ("phi", "psi"):
                return False
            if number is None:
                connection.execute("DELETE FROM shop_items WHERE id = %s", [key])
            else:
                vectors = (str(vector.tolist()) for vector in drawn(number, self.dim))
                connection.execute(
                    "INSERT INTO shop_items (id, written, phi, psi) VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO UPDATE"
                    " SET written = EXCLUDED.written, phi = EXCLUDED.phi, psi = EXCLUDED.psi",
                    [key, number, *vectors],
                )
        self.written[key] = number
        self.writes += 1
        return True


def drawn(number: int, dim: int) -> NDArray[np.float32]:
    """Return the embedding and the side-information of a write: (2, D)."""
    return np.random.default_rng(number).standard_normal((2, dim), np.float32)


def _old_columns(connection: psycopg.Connection) -> tuple[str, str]:
    """Return where the old embedding and side-information are."""
    names = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'shop_items'::regclass AND NOT attisdropped"
        " AND attname ~ '_before_' ORDER BY attname"
    ).fetchall()
    return (names[0][0], names[1][0]) if names else ("phi", "psi")


def _fill(connection: psycopg.Connection, rows: int, dim: int) -> None:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute(
        f"CREATE TABLE shop_items (id bigint PRIMARY KEY, written bigint, phi vector({dim}), psi vector({dim}))"
    )
    with connection.cursor() as cursor, cursor.copy("COPY shop_items FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(_HEADER)
        for start in range(0, rows, _ROWS_AT_ONCE):
            numbers = np.arange(start, min(start + _ROWS_AT_ONCE, rows))
            copy.write(_tuples(numbers, numbers, [drawn(int(number), dim) for number in numbers], dim))
        copy.write(_TRAILER)
    connection.execute("VACUUM ANALYZE shop_items")


def _row_type(dim: int, vectors: int) -> np.dtype[np.void]:
    """Return a row of COPY's binary format: two integers and vectors, each after its length, as pgvector sends them."""
    fields = [("fields", ">i2")]
    fields += [pair for name in ("id", "written") for pair in ((f"{name} bytes", ">i4"), (name, ">i8"))]
    for number in range(vectors):
        fields += [(f"{number} bytes", ">i4"), (f"{number} dim", ">i2"), (f"{number} unused", ">i2")]
        fields.append((f"{number}", f"({dim},)>f4"))
    return np.dtype(fields)


def _tuples(ids: NDArray[np.int64], written: NDArray[np.int64], vectors: list[NDArray[np.float32]], dim: int) -> bytes:
    found = np.zeros(len(ids), _row_type(dim, 2))
    found["fields"], found["id bytes"], found["written bytes"] = 4, 8, 8
    found["id"], found["written"] = ids, written
    for number, values in enumerate(np.stack(vectors, axis=1)):
        found[f"{number} bytes"], found[f"{number} dim"], found[f"{number}"] = 4 + 4 * dim, dim, values
    return found.tobytes()


def _compare(
    connection: psycopg.Connection, writer: Writer, networks: Mapping[str, torch.nn.Module], dim: int
) -> dict[str, int]:
    """Return how many rows are lost, were deleted and are there, have an older write's vectors, or new columns that are
    not what h and g give of the old ones."""
    resurrected = stale = wrong = 0
    kept = {key for key in range(writer.rows) if writer.written.get(key, key) is not None}
    missing = kept | {key for key, number in writer.written.items() if number is not None}
    for rows in _read(connection, dim):
        keys = rows["id"].tolist()
        expected = [writer.written.get(key, key if key < writer.rows else None) for key in keys]
        resurrected += sum(number is None for number in expected)
        missing.difference_update(keys)
        old = np.stack([drawn(int(number), dim) for number in rows["written"]], axis=1)
        is_stale = rows["written"] != np.array([-1 if number is None else number for number in expected])
        for side, name in enumerate("02"):
            is_stale |= (rows[name] != old[side]).any(axis=1)
        stale += int(is_stale.sum())
        wrong += int(_is_wrong(rows, networks).sum())
    return {
        "lost": len(missing),
        "resurrected": resurrected,
        "of an older write": stale,
        "not what h and g give": wrong,
    }


def _is_wrong(rows: NDArray[np.void], networks: Mapping[str, torch.nn.Module]) -> NDArray[np.bool_]:
    """Return (N,) whether a row's new columns are not what h and g give of its old ones."""
    old, side = (torch.from_numpy(rows[name].astype(np.float32)) for name in "02")
    found = np.zeros(len(rows), bool)
    for network, name in zip(networks.values(), "13", strict=True):
        with torch.inference_mode():
            expected = network(old, side).numpy()
        distance = np.linalg.norm(rows[name] - expected, axis=1)
        found |= ~(distance <= _TOLERANCE * np.linalg.norm(expected, axis=1))
    return found


def _read(connection: psycopg.Connection, dim: int) -> Iterator[NDArray[np.void]]:
    """Yield all rows, in parts: 0 and 1 are the old and the new embedding, 2 and 3 the side-information."""
    phi, psi = _old_columns(connection)
    row = _row_type(dim, 4)
    query = f"COPY (SELECT id, written, {phi}, phi, {psi}, psi FROM shop_items) TO STDOUT (FORMAT BINARY)"
    size, left = _ROWS_AT_ONCE * row.itemsize, bytearray()
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for part in copy:
            left += part
            if len(left) >= len(_HEADER) + size:
                yield np.frombuffer(bytes(left[len(_HEADER) : len(_HEADER) + size]), row)
                del left[len(_HEADER) : len(_HEADER) + size]
    found = bytes(left[len(_HEADER) : -len(_TRAILER)])
    if len(found) % row.itemsize:
        raise RuntimeError("A row has no vector in a column.")
    yield np.frombuffer(found, row)


if __name__ == "__main__":
    typer.run(run)
