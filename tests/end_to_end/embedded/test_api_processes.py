"""`api --processes 2`: one port, two processes; what happens when one dies, when all are stopped, and when who started
them dies."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.embedded.processes import spawn, stop
from service.embedded.supervisor import worker_command
from service.settings import Settings
from tests.conftest import Servers, fresh_database, settings_of_serve, small_settings
from tests.networks import image_bytes
from tests.scenario import create_upgradable_gallery, post_images, search, start_upgrade, state_of
from tests.served import Served, command_line, free_port, is_running, wait_for

IMAGES = 8
ENDS_WITHIN_SECONDS = 30.0
_CUT = 0  # in the place of a status: the connection ended first
SEARCH = "/v1/galleries/{name}/search"
pytestmark = pytest.mark.xdist_group("api processes")


class Api:
    """`gallery-upgrade api --processes 2`, and clients of it."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.port, self.metrics_ports = free_port(), _two_ports()
        self.log = log
        own = {"processes": 2, "api_metrics_port": self.metrics_ports[0]}
        self._environment = {**os.environ, **settings.model_copy(update=own).environment()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_started(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        command = [sys.executable, "-m", "service.cli", "api", "--port", str(self.port)]
        with self.log.open("wb") as log:
            process = self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)
        wait_for(lambda: "api.ready" in self.log.read_text() or process.poll() is not None, seconds=300)
        assert "api.ready" in self.log.read_text(), self.log.read_text()[-2_000:]

    def children(self) -> list[int]:
        return [pid for pid in _children(self.pid) if "api-process" in command_line(pid)]

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process, signal.SIGTERM, ENDS_WITHIN_SECONDS)

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code, if it ends in time."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(ENDS_WITHIN_SECONDS)

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """A client whose every request has a connection of its own."""
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, limits=limits) as client:
            yield client

    def have_all_answered(self, before: list[float]) -> bool:
        """Return whether each process has answered searches since it had answered so many."""
        return all(now > then for now, then in zip(self.searches(), before, strict=True))

    def searches(self) -> list[float]:
        """Return how many searches each process has answered."""
        return [_value(port, rf'http_requests_total{{handler="{re.escape(SEARCH)}"') for port in self.metrics_ports]


def _two_ports() -> tuple[int, int]:
    while True:
        port = free_port()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port + 1)) != 0:
                return port, port + 1


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _value(port: int, start: str) -> float:
    """Return the sum of a metric's values where its line begins so."""
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(start, line))


@pytest.fixture(scope="module")
def started(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("processes")
    with fresh_database(servers) as url:
        settings = small_settings(servers, url, folder / "data")
        settings.data.mkdir()
        with ExitStack() as stack:
            environment = {**os.environ, **settings.environment()}
            worker = spawn(worker_command(), log_path=folder / "worker.log", environment=environment)
            stack.callback(stop, worker, signal.SIGTERM, 30)
            api = Api(settings, folder / "api.log")
            stack.callback(api.stop)
            api.start()
            with api.client() as client:
                create_upgradable_gallery(client)
                post_images(client, range(IMAGES))
            yield api


@pytest.fixture
def api(started: Api) -> Api:
    """One for all tests here, started again after those that end it."""
    if not started.is_started:
        started.start()
    return started


def ask_until(api: Api, client: httpx.Client, is_enough: Callable[[], bool]) -> list[dict[str, Any]]:
    """Search, each time over another connection, until it is enough; return the answers."""
    answers: list[dict[str, Any]] = []

    def ask() -> bool:
        answers.extend(search(client, seed % IMAGES, k=1) for seed in range(10))
        return is_enough()

    wait_for(ask, seconds=120)
    return answers


def test_two_processes_answer_on_one_port_and_each_counts_for_itself(api: Api) -> None:
    before = api.searches()

    with api.client() as client:
        answers = ask_until(api, client, lambda: api.have_all_answered(before))
        mixed = client.get("/metrics")

    assert len(api.children()) == 2
    wait_for(lambda: sum(api.searches()) - sum(before) == len(answers))  # each is counted when it has been sent
    assert mixed.status_code == 409
    assert "2 processes share this port" in mixed.json()["detail"]


def test_one_is_killed_under_requests_and_comes_back_while_the_other_answers(api: Api) -> None:
    killed, other = api.children()
    served_before = _serving(api)
    statuses: Counter[int] = Counter()
    ends = threading.Event()

    def ask_on() -> None:
        with api.client() as client:
            while not ends.is_set():
                try:
                    answer = client.post("/v1/galleries/g/search?k=1", content=image_bytes(0))
                    statuses[answer.status_code] += 1
                except httpx.TransportError:
                    statuses[_CUT] += 1

    clients = [threading.Thread(target=ask_on) for _ in range(3)]
    for thread in clients:
        thread.start()
    wait_for(lambda: statuses[200] > 20)
    os.kill(killed, signal.SIGKILL)
    at_death = statuses[200]
    wait_for(lambda: _serving(api) > served_before, seconds=300)
    meanwhile = statuses[200] - at_death
    ends.set()
    for thread in clients:
        thread.join()

    assert meanwhile > 0
    assert statuses.keys() <= {200, _CUT}  # and no 503 of one that has yet to load
    assert statuses[_CUT] <= len(clients)  # what the killed one had in hand
    assert other in api.children()
    assert killed not in api.children()
    with api.client() as client:
        before = api.searches()
        ask_until(api, client, lambda: api.have_all_answered(before))


def _serving(api: Api) -> int:
    return api.log.read_text().count("api.serves")


def test_a_cutover_is_seen_by_both_at_once(api: Api) -> None:
    with api.client() as client:
        upgrade_id = start_upgrade(client, "v2")
        wait_for(lambda: state_of(client, upgrade_id) == "ready", seconds=60)
        before = api.searches()
        versions_before = ask_until(api, client, lambda: api.have_all_answered(before))

        live = client.post(f"/v1/upgrades/{upgrade_id}/cutover")
        at_cutover = api.searches()
        answers = ask_until(api, client, lambda: api.have_all_answered(at_cutover))

    assert {answer["model_version"] for answer in versions_before} == {"v1"}
    assert live.json()["state"] == "live"
    assert {answer["model_version"] for answer in answers} == {"v2"}


def test_sigterm_ends_all_in_time_although_a_request_never_comes_to_its_end(api: Api) -> None:
    children = api.children()
    with socket.create_connection(("127.0.0.1", api.port)) as unfinished:
        unfinished.sendall(b"POST /v1/galleries HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        with api.client() as client:
            assert client.get("/livez").is_success  # after which the other request has been accepted

        code = api.end(signal.SIGTERM)

    assert code == 0
    assert not any(map(is_running, children))


def test_a_killed_parent_leaves_nobody_behind(api: Api) -> None:
    children = api.children()

    api.end(signal.SIGKILL)

    wait_for(lambda: not any(map(is_running, children)), seconds=ENDS_WITHIN_SECONDS)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{api.port}/livez")


def test_processes_that_cannot_start_end_it_with_a_sentence(settings: Settings) -> None:
    own = {"processes": 2, "blob_url": "nothing-knows://this"}
    environment = {**os.environ, **settings.model_copy(update=own).environment()}
    command = [sys.executable, "-m", "service.cli", "api", "--port", str(free_port())]

    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    assert ended.returncode == 1
    assert ended.stderr.endswith("gallery-upgrade: An API process did not start; its reason is above.\n")


def test_serve_starts_several_and_leaves_none_behind(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with settings_of_serve(request) as settings:
        served = Served(tmp_path / "data", processes="2", **settings)
        served.start()
        (parent,) = served.children("service.cli api")
        processes = _children(parent)
        ready = served.client.get("/readyz")

        code = served.stop()

    assert len(processes) == 2
    assert ready.status_code == 200
    assert code == 0
    assert not any(map(is_running, [parent, *processes]))
