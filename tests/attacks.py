"""Small requests that cost much, each sent to a fresh API process beside a neighbour who searches another gallery: what
was answered, after how long, what memory it took, and what the neighbour and `/livez` noticed.

    python -m tests.attacks
"""

import io
import json
import resource
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console

from benchmarks.processes import Api, api_process
from benchmarks.setting import machine, markdown, worker_with_servers
from tests.endless import endless_encoder
from tests.networks import PREPROCESSING, image_bytes
from tests.scenario import create_gallery, create_upgradable_gallery, import_vectors, start_upgrade
from workers.app import WorkerParts

_PORT = 18_561
_DIM = 6
_NETWORK_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.05
_PATIENCE_SECONDS = 300.0
_MIB = 2**20

Answers = Counter[str]
Send = Callable[[httpx.Client], Answers]


@dataclass(frozen=True)
class Attack:
    """`files`: the soft limit of what the API process may open, None for as many as this one may."""

    name: str
    send: Send
    files: int | None = None


@dataclass
class Watch:
    """What is seen while an attack goes on: the memory of the API process and of its children, and a neighbour's
    slowest search and look at `/livez`, in seconds, with what went wrong of either."""

    idle_bytes: int
    peak_bytes: int = 0
    slowest: dict[str, float] = field(default_factory=lambda: {"search": 0.0, "livez": 0.0})
    failed: Answers = field(default_factory=Counter)


def run(only: str = "", network_seconds: float = _NETWORK_SECONDS) -> None:
    """Print the table; `only` those attacks whose names have this in them."""
    rows = []
    with worker_with_servers(network_seconds=network_seconds) as parts:
        with api_process(parts, _PORT) as api:
            _furnish(api.client)
        for number, attack in enumerate(each for each in ATTACKS if only in each.name):
            rows.append(_try(parts, attack, _PORT + 1 + number))
            print(rows[-1], flush=True)
    columns = ("attack", "answers", "seconds", "MiB over idle", "neighbour's slowest search", "slowest `/livez`")
    print(markdown((*columns, "neighbour's failures"), rows))
    Console(width=130).print(f"{machine()}; networks have {network_seconds:g} s")


def _furnish(client: httpx.Client) -> None:
    create_upgradable_gallery(client)
    import_vectors(client, [f"{number}" for number in range(1_000)])
    create_gallery(client, "neighbour")
    import_vectors(client, [f"{number}" for number in range(1_000)], "neighbour")
    start_upgrade(client, "v2")


def _try(parts: WorkerParts, attack: Attack, port: int) -> tuple[str, ...]:
    with ExitStack() as running:
        with _files(attack.files):
            api = running.enter_context(api_process(parts, port))
        _search(api.client)
        with _watched(api) as watch:
            began = time.monotonic()
            with httpx.Client(base_url=api.client.base_url, timeout=_PATIENCE_SECONDS) as client:
                answers = attack.send(client)
            seconds = time.monotonic() - began
    return (
        attack.name,
        ", ".join(f"{count} × {answer}" for answer, count in sorted(answers.items())),
        f"{seconds:.1f}",
        f"{(watch.peak_bytes - watch.idle_bytes) / _MIB:.0f}",
        f"{watch.slowest['search'] * 1e3:.0f} ms",
        f"{watch.slowest['livez'] * 1e3:.0f} ms",
        ", ".join(f"{count} × {what}" for what, count in watch.failed.items()) or "0",
    )


@contextmanager
def _files(most: int | None) -> Iterator[None]:
    """Let what is started meanwhile open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most is None:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _watched(api: Api) -> Iterator[Watch]:
    watch = Watch(_resident_bytes(api.pid))
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY_SECONDS):
            watch.peak_bytes = max(watch.peak_bytes, _resident_bytes(api.pid))

    def ask(what: str, once: Callable[[httpx.Client], httpx.Response]) -> None:
        with httpx.Client(base_url=api.client.base_url, timeout=_PATIENCE_SECONDS) as client:
            while True:
                began = time.monotonic()
                try:
                    answer = once(client)
                    if not answer.is_success:
                        watch.failed[f"{what}: {answer.status_code}"] += 1
                except httpx.TransportError as error:
                    watch.failed[f"{what}: {type(error).__name__}"] += 1
                watch.slowest[what] = max(watch.slowest[what], time.monotonic() - began)
                if ended.wait(_LOOK_EVERY_SECONDS):
                    return

    asked = {"search": _search, "livez": lambda client: client.get("/livez")}
    threads = [threading.Thread(target=look), *(threading.Thread(target=ask, args=pair) for pair in asked.items())]
    for thread in threads:
        thread.start()
    try:
        yield watch
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _search(client: httpx.Client) -> httpx.Response:
    query = {"vectors": [[0.5] * _DIM], "k": 5}
    return client.post("/v1/galleries/neighbour/search/vectors", json=query)


def _resident_bytes(pid: int) -> int:
    """Return the memory of a process and of all that it started."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = " ".join((task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()).split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * resource.getpagesize() + sum(map(_resident_bytes, map(int, children)))


def _at_once(count: int, send: Callable[[int], httpx.Response]) -> Answers:
    """Send so many requests side by side."""

    def answer(number: int) -> str:
        try:
            return str(send(number).status_code)
        except httpx.TransportError as error:
            return type(error).__name__

    with ThreadPoolExecutor(count) as threads:
        return Counter(threads.map(answer, range(count)))


def _register_endless(client: httpx.Client) -> Answers:
    data = endless_encoder(_DIM, rows=None)
    return _at_once(42, lambda number: _register(client, f"endless-{number}", data))


def _register(client: httpx.Client, name: str, data: bytes) -> httpx.Response:
    spec = {"embedding_dim": _DIM, "preprocessing": PREPROCESSING}
    files = {"embedding_model": ("phi", data)}
    return client.post("/v1/model-versions", data={"name": name, "spec": json.dumps(spec)}, files=files)


def _post_bitmaps(client: httpx.Client) -> Answers:
    files = [("files", (f"{number}.png", blank_png(8_000, 8_000))) for number in range(12)]
    return _answer(client.post("/v1/galleries/g/images", files=files))


def _search_by_lines(client: httpx.Client) -> Answers:
    line = blank_png(64_000_000, 1)
    return _at_once(32, lambda _: client.post("/v1/galleries/g/search", files={"file": ("line.png", line)}))


def blank_png(width: int, height: int) -> bytes:
    """Return a PNG file of so many black pixels of one bit."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">II5B", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _import_equal_ids(client: httpx.Client) -> Answers:
    count = 2_000_000
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(count * _DIM, np.float32)), _DIM)
    table = pa.table({"id": pa.array(["same"]).take(pa.array(np.zeros(count, np.int64))), "embedding": vectors})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return _import(client, sink.getvalue().to_pybytes(), "application/vnd.apache.parquet")


def _import_bomb(client: httpx.Client) -> Answers:
    """A text of a gigabyte of equal bytes."""
    size = 2**30
    offsets, text = pa.py_buffer(np.array([0, size], np.int64)), pa.py_buffer(bytes(size))
    table = pa.table({"id": pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, text])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    return _import(client, sink.getvalue().to_pybytes(), "application/vnd.apache.arrow.stream")


def _import(client: httpx.Client, body: bytes, media_type: str) -> Answers:
    headers = {"Content-Type": media_type}
    return _answer(client.post("/v1/galleries/g/embeddings", content=body, headers=headers))


def _train_on_lists(client: httpx.Client) -> Answers:
    body = b'{"a": [' + b"[]," * 60_000_000 + b"[]]}"
    path, headers = "/v1/transformations/train", {"Content-Type": "application/json"}
    try:
        return _answer(client.post(path, content=io.BytesIO(body), headers=headers))
    except httpx.TransportError as error:  # the answer came before the body was sent
        return Counter([type(error).__name__])


def _send_large_header(client: httpx.Client) -> Answers:
    with _connection(client) as connection:
        with suppress(OSError):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Large: " + b"a" * 40_000_000)
        return Counter([_status_line(connection)])


def _idle_connections(client: httpx.Client) -> Answers:
    """300 connections that send nothing, for ten seconds, to a process with a soft limit of 160 files; and one that
    asks."""
    held = []
    for _ in range(300):
        with suppress(OSError):
            held.append(_connection(client))
    with httpx.Client(base_url=client.base_url, timeout=_PATIENCE_SECONDS) as another:
        answers = _answer(another.get("/livez"))
    time.sleep(10)
    answers += Counter(_said_by_now(connection) for connection in held)
    for connection in held:
        connection.close()
    return answers


def _said_by_now(connection: socket.socket) -> str:
    connection.setblocking(False)
    try:
        return connection.recv(1_000).split(b"\r\n")[0].decode() or "closed"
    except BlockingIOError:
        return "left open"
    except OSError as error:
        return type(error).__name__


def _connection(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)


def _status_line(connection: socket.socket) -> str:
    try:
        return connection.recv(1_000).split(b"\r\n")[0].decode() or "closed"
    except OSError as error:
        return type(error).__name__


def _filter_of_nothing(client: httpx.Client) -> Answers:
    body = {"vectors": [[0.5] * _DIM], "filter": {"or": [{}] * 750_000}}
    return _answer(client.post("/v1/galleries/g/search/vectors", json=body))


def _listen(client: httpx.Client) -> Answers:
    """200 listeners to one upgrade, for ten seconds."""
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=client.base_url, timeout=30, limits=limits) as own:

        def listen(_: int) -> httpx.Response:
            ends = time.monotonic() + 10
            with own.stream("GET", "/v1/upgrades/1/events") as answer:
                with suppress(httpx.ReadTimeout):
                    for _chunk in answer.iter_raw():
                        if time.monotonic() > ends:
                            break
                return answer

        return _at_once(200, listen)


def _post_many_files(client: httpx.Client) -> Answers:
    """1,500 files of just under a megabyte that are no images."""
    data = bytes(1_000_000)
    files = [("files", (f"{number}.png", data)) for number in range(1_500)]
    return _answer(client.post("/v1/galleries/g/images", files=files))


def _post_in_charset(client: httpx.Client) -> Answers:
    kind = "multipart/form-data; boundary=b; charset=unicode_escape"
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + image_bytes(1) + b"\r\n--b--"
    return _answer(client.post("/v1/galleries/g/images", content=body, headers={"Content-Type": kind}))


def _answer(answer: httpx.Response) -> Answers:
    return Counter([str(answer.status_code)])


ATTACKS: Sequence[Attack] = (
    Attack("42 registrations of a network that never ends, at once", _register_endless),
    Attack("12 PNGs of 8,000 x 8,000 of one bit, 8 kB each, in one ingest", _post_bitmaps),
    Attack("32 searches by a PNG of 64,000,000 x 1, at once", _search_by_lines),
    Attack("Parquet of 2 million equal ids", _import_equal_ids),
    Attack("Arrow of a text of a gigabyte, compressed", _import_bomb),
    Attack("180 MB of JSON lists to a training", _train_on_lists),
    Attack("a header of 40 MB", _send_large_header),
    Attack("300 idle connections and one that asks, at a soft limit of 160 descriptors", _idle_connections, files=160),
    Attack("a filter of 750,000 empty operands", _filter_of_nothing),
    Attack("200 listeners to an upgrade's events, for 10 s", _listen),
    Attack("1,500 files of 1 MB that are no images", _post_many_files),
    Attack("a form in the charset unicode_escape", _post_in_charset),
)


if __name__ == "__main__":
    typer.run(run)
