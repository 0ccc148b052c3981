"""Embedded PostgreSQL and Valkey through kills, leftovers and awkward folders; runs as root and as an ordinary user."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis
from celery import Celery
from sqlalchemy import NullPool, create_engine, make_url, text

from service.embedded.processes import Account, spawn
from service.embedded.servers import DataFolderInUse, EmbeddedServerError, EmbeddedServers, ServerDied

pytestmark = pytest.mark.xdist_group("embedded servers")
_PROGRAMS = ("initdb", "postgres", "valkey-server")
_OWNER = """
import sys, time
from pathlib import Path
from service.embedded.servers import EmbeddedServers

servers = EmbeddedServers(Path(sys.argv[1]))
servers.start()
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a cluster; every test finds it stopped and leaves it stopped."""
    made = tmp_path_factory.mktemp("embedded") / "data"
    with EmbeddedServers(made):
        return made


def ask(servers: EmbeddedServers, sql: str) -> object:
    """Run one statement through the published URL and return its first value, if it has one."""
    with create_engine(servers.database_url, poolclass=NullPool).begin() as connection:
        result = connection.execute(text(sql))
        return result.scalar() if result.returns_rows else None


def connected(servers: EmbeddedServers) -> psycopg.Connection:
    return psycopg.connect(servers.database_url.replace("+psycopg", ""))


def valkey(servers: EmbeddedServers) -> "redis.Redis":
    return redis.Redis.from_url(servers.redis_url)


def socket_folder(servers: EmbeddedServers) -> Path:
    host = make_url(servers.database_url).query["host"]
    assert isinstance(host, str)
    return Path(host)


def server_pids(folder: Path) -> list[int]:
    """Return the servers, back ends and initdb that work in the folder or name it on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "comm").read_text().strip()
                mentions = (entry / "cmdline").read_bytes() + str((entry / "cwd").readlink()).encode()
            except OSError:  # it has ended meanwhile, or belongs to another user
                continue
            if name in _PROGRAMS and str(folder).encode() in mentions:
                found.append(int(entry.name))
    return found


def postmaster_pid(folder: Path) -> int:
    return int((folder / "postgres" / "postmaster.pid").read_text().split()[0])


def valkey_pid(folder: Path) -> int:
    return int((folder / "valkey.pid").read_text())


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


@contextmanager
def owner_process(folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """Another process that starts the servers of a folder and says so on its standard output."""
    command = [sys.executable, "-c", _OWNER, str(folder)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as owner:
        try:
            yield owner
        finally:
            owner.kill()
    wait_until(lambda: not server_pids(folder))  # they end a moment after their owner


def wait_until_started(owner: "subprocess.Popen[str]") -> None:
    assert owner.stdout is not None
    assert owner.stdout.readline() == "started\n"


def died(servers: EmbeddedServers) -> bool:
    try:
        servers.check()
    except ServerDied:
        return True
    return False


def test_the_published_urls_suit_sqlalchemy_and_redis_and_celery(folder: Path) -> None:
    with EmbeddedServers(folder) as servers:
        application = Celery(broker=servers.broker_url, set_as_current=False)
        with application.connection_for_write() as connection, connection.SimpleQueue("letters") as queue:
            queue.put({"letter": "a"})
            received = queue.get(timeout=5).payload

        assert received == {"letter": "a"}
        assert ask(servers, "SELECT current_database()") == "gallery"
        assert ask(servers, "SELECT lower('ÀÉ')") == "àé"
        assert valkey(servers).ping()
        servers.check()


def test_the_servers_are_set_up_to_lose_nothing(folder: Path) -> None:
    with EmbeddedServers(folder) as servers:
        postgres = {name: ask(servers, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "listen_addresses")}
        broker = valkey(servers).config_get("appendonly", "maxmemory-policy", "port")

    assert postgres == {"fsync": "on", "synchronous_commit": "on", "listen_addresses": ""}
    assert broker == {"appendonly": "yes", "maxmemory-policy": "noeviction", "port": "0"}


def test_nobody_else_can_reach_the_sockets(folder: Path) -> None:
    with EmbeddedServers(folder) as servers:
        paths = [folder, *socket_folder(servers).glob("*.sock"), socket_folder(servers) / ".s.PGSQL.5432"]
        modes = [stat.S_IMODE(path.lstat().st_mode) for path in paths]

    assert modes == [0o700, 0o700, 0o700]


def test_ctrl_c_in_our_terminal_does_not_reach_the_servers(folder: Path) -> None:
    with EmbeddedServers(folder):
        sessions = {os.getsid(pid) for pid in (postmaster_pid(folder), valkey_pid(folder))}

    assert len(sessions) == 2
    assert os.getsid(0) not in sessions


def test_stopping_leaves_no_process_and_can_be_repeated(folder: Path) -> None:
    servers = EmbeddedServers(folder)
    servers.start()
    assert len(server_pids(folder)) > 2

    servers.stop()
    left = server_pids(folder)
    servers.stop()

    assert left == []


def test_a_restart_keeps_rows_and_lists(folder: Path) -> None:
    with EmbeddedServers(folder) as servers:
        ask(servers, "CREATE TABLE kept AS SELECT 42 AS answer")
        valkey(servers).rpush("kept", "one", "two")

    with EmbeddedServers(folder) as servers:
        assert ask(servers, "SELECT answer FROM kept") == 42
        assert valkey(servers).lrange("kept", 0, -1) == [b"one", b"two"]


@pytest.mark.parametrize(("name", "pid_of"), [("postgres", postmaster_pid), ("valkey", valkey_pid)])
def test_a_killed_server_is_noticed_and_the_next_start_recovers_its_data(
    folder: Path, name: str, pid_of: Callable[[Path], int]
) -> None:
    with EmbeddedServers(folder) as servers:
        ask(servers, f"CREATE TABLE before_{name} AS SELECT 1 AS one")
        valkey(servers).rpush(f"before_{name}", "one")

        os.kill(pid_of(folder), signal.SIGKILL)
        wait_until(lambda: died(servers))

        with pytest.raises(ServerDied, match=name):
            servers.check()

    with EmbeddedServers(folder) as servers:
        assert ask(servers, f"SELECT one FROM before_{name}") == 1
        assert valkey(servers).lrange(f"before_{name}", 0, -1) == [b"one"]


def test_a_start_waits_for_the_back_ends_of_a_killed_postmaster(folder: Path) -> None:
    with EmbeddedServers(folder) as servers:
        connection = connected(servers)
        busy_pid = connection.info.backend_pid
        connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 15000000)")
        os.kill(postmaster_pid(folder), signal.SIGKILL)
        wait_until(lambda: died(servers))
    was_busy = busy_pid in server_pids(folder)

    with EmbeddedServers(folder) as servers:
        still_busy = busy_pid in server_pids(folder)
        answer = ask(servers, "SELECT 1")
    connection.close()

    assert (was_busy, still_busy, answer) == (True, False, 1)


def test_an_owner_that_is_killed_leaves_no_process(folder: Path) -> None:
    with owner_process(folder) as owner:
        wait_until_started(owner)
        assert len(server_pids(folder)) > 2

        owner.kill()

        wait_until(lambda: not server_pids(folder))


def test_a_start_right_after_the_owner_was_killed_works(folder: Path) -> None:
    with owner_process(folder) as owner:
        wait_until_started(owner)
        owner.kill()
        owner.wait()

        with EmbeddedServers(folder) as servers:
            assert ask(servers, "SELECT 1") == 1
            assert valkey(servers).ping()


def test_a_start_waits_for_a_broker_that_an_owner_left_behind(folder: Path) -> None:
    with owner_process(folder) as owner:
        wait_until_started(owner)
        left_behind = valkey_pid(folder)
        os.kill(left_behind, signal.SIGSTOP)  # so that it cannot hear that its owner has died
        threading.Timer(1.0, os.kill, (left_behind, signal.SIGCONT)).start()
        owner.kill()
        owner.wait()

        with EmbeddedServers(folder) as servers:
            assert left_behind not in server_pids(folder)
            assert valkey(servers).ping()


def test_a_postgres_that_somebody_left_running_is_stopped_first(folder: Path) -> None:
    with EmbeddedServers(folder):
        command = Path(f"/proc/{postmaster_pid(folder)}/cmdline").read_text().rstrip("\0").split("\0")
    cluster = (folder / "postgres").stat()
    left_running = spawn(
        command,
        log_path=folder / "left-running.log",
        environment={},
        account=Account(cluster.st_uid, cluster.st_gid) if os.geteuid() == 0 else None,
    )
    wait_until(lambda: b"ready to accept" in (folder / "left-running.log").read_bytes())

    with EmbeddedServers(folder) as servers:
        assert left_running.wait(5) == 0
        assert ask(servers, "SELECT 1") == 1


def test_a_kill_during_initdb_is_recovered(tmp_path: Path) -> None:
    begun, finished = tmp_path / "data" / "postgres.part" / "PG_VERSION", tmp_path / "data" / "postgres"
    with owner_process(tmp_path / "data") as owner:
        wait_until(lambda: begun.exists() or finished.exists())
        owner.kill()
        owner.wait()

        with EmbeddedServers(tmp_path / "data") as servers:
            assert ask(servers, "SELECT 1") == 1


@pytest.mark.parametrize("found", ["the pid of another process", "nothing", "zeros"])
def test_a_stale_pid_file_does_not_prevent_a_start(folder: Path, found: str) -> None:
    pid_file = folder / "postgres" / "postmaster.pid"
    with EmbeddedServers(folder):
        _, _, rest = pid_file.read_text().partition("\n")
    content = {"the pid of another process": f"{os.getppid()}\n{rest}", "nothing": "", "zeros": "\0" * 40}
    pid_file.write_text(content[found])

    with EmbeddedServers(folder) as servers:
        assert ask(servers, "SELECT 1") == 1


def test_a_second_start_of_the_same_folder_is_refused(folder: Path) -> None:
    with owner_process(folder) as owner:
        wait_until_started(owner)

        with pytest.raises(DataFolderInUse, match=str(folder)):
            EmbeddedServers(folder).start()


@pytest.mark.parametrize("name", ["a" * 120, "a, b %41 'é'"])
def test_a_folder_that_does_not_suit_a_socket_gets_a_socket_folder_elsewhere(
    folder: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(folder, tmp_path / name)
    servers, second = EmbeddedServers(tmp_path / name), EmbeddedServers(tmp_path / name)
    sockets = socket_folder(servers)

    with servers:
        with pytest.raises(DataFolderInUse):
            second.start()
        second.stop()

        assert ask(servers, "SELECT 1") == 1
        assert valkey(servers).ping()
        assert not sockets.is_relative_to(tmp_path)
    assert not sockets.exists()


def test_a_socket_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    servers = EmbeddedServers(tmp_path / ("a" * 120))
    sockets = socket_folder(servers)
    sockets.mkdir()
    sockets.chmod(0o777)

    with pytest.raises(EmbeddedServerError, match="was not made by this program"):
        servers.start()


def test_a_copied_data_folder_below_a_folder_closed_to_others_works(folder: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(folder, closed / "data")  # done by root, the copy belongs to root
    if os.geteuid() == 0:
        os.chown(closed, 12345, 12345)  # as with sudo in a user's home

    with EmbeddedServers(closed / "data") as servers:
        assert ask(servers, "SELECT 1") == 1


def test_the_users_own_postgres_variables_do_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "PGPORT": "6000",
        "PGDATA": "/nowhere",
        "PGHOST": "nowhere",
        "PGUSER": "no",
        "PGCLIENTENCODING": "LATIN1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with EmbeddedServers(folder) as servers:
        user = ask(servers, "SELECT current_user")
        monkeypatch.delenv("PGCLIENTENCODING")  # our own client would ask for it
        encoding = ask(servers, "SHOW client_encoding")

    assert (user, encoding) == ("postgres", "UTF8")


def test_a_cluster_of_another_major_version_is_refused_each_time(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("17\n")

    for _ in range(2):
        with pytest.raises(EmbeddedServerError, match="was made by PostgreSQL 17"):
            EmbeddedServers(tmp_path).start()


def test_a_data_folder_that_cannot_be_made_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddedServerError, match="cannot start"):
        EmbeddedServers(tmp_path / "file" / "data").start()
