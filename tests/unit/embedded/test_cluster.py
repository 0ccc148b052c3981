"""A cluster's folder: who owns it, that it has its name only when it is whole, and pid files that lie."""

import os
from pathlib import Path

import pytest

from service.embedded.cluster import (
    EmbeddedServerError,
    give_folder,
    installed_package,
    make_cluster,
    make_stale,
    postgres_binary,
    servers_account,
    servers_environment,
)
from service.embedded.processes import Account

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")


def test_a_package_that_is_not_installed_is_named_with_the_way_out() -> None:
    with pytest.raises(EmbeddedServerError, match="no_such_package is not installed; use servers of your own"):
        installed_package("no_such_package")


def test_the_wheels_programs_can_be_run() -> None:
    assert [os.access(postgres_binary(name), os.X_OK) for name in ("postgres", "initdb")] == [True, True]


def test_a_users_settings_for_psql_do_not_reach_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("GALLERY_PG", "kept")

    environment = servers_environment()

    assert "PGPORT" not in environment
    assert environment["GALLERY_PG"] == "kept"


@as_root
def test_a_folder_of_roots_is_given_with_all_that_is_in_it_and_links_are_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.touch()
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").touch()
    (folder / "link").symlink_to(outside)

    give_folder(folder, Account(12345, 12346))

    given = [folder, folder / "below", folder / "below" / "file", folder / "link"]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in given} == {(12345, 12346)}
    assert outside.stat().st_uid == 0


@as_root
def test_a_folder_of_another_user_is_refused_and_left_alone(tmp_path: Path) -> None:
    os.chown(tmp_path, 23456, 23456)

    with pytest.raises(EmbeddedServerError, match="belongs to the user with id 23456"):
        give_folder(tmp_path, Account(12345, 12345))

    assert tmp_path.stat().st_uid == 23456


def test_a_folder_stays_ours_when_the_servers_run_as_ourselves(tmp_path: Path) -> None:
    before = tmp_path.stat().st_uid

    give_folder(tmp_path, None)

    assert tmp_path.stat().st_uid == before


def test_a_cluster_that_cannot_be_made_has_no_name_and_the_reason_is_told(tmp_path: Path) -> None:
    part = tmp_path / "postgres.part"
    part.mkdir()
    (part / "left by a kill").touch()

    with pytest.raises(EmbeddedServerError, match=r"initdb failed: .*no-such-option"):
        make_cluster(
            tmp_path / "postgres", ["--no-such-option"], environment=servers_environment(), account=servers_account()
        )

    assert not (tmp_path / "postgres").exists()
    assert list(part.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "rest"),
    [
        (b"1\n/cluster\n17\n", b"/cluster\n17\n"),
        (b"1\n", None),
        (b"", None),
        (b"\0" * 40, None),  # as after a power cut
    ],
)
def test_a_pid_file_names_no_process_that_could_be_another(tmp_path: Path, found: bytes, rest: bytes | None) -> None:
    pid_file = tmp_path / "postmaster.pid"
    pid_file.write_bytes(found)

    make_stale(pid_file)

    left = pid_file.read_bytes() if pid_file.exists() else None
    assert left == (None if rest is None else b"%d\n%b" % (os.getpid(), rest))


def test_no_pid_file_is_made_where_there_is_none(tmp_path: Path) -> None:
    make_stale(tmp_path / "postmaster.pid")

    assert list(tmp_path.iterdir()) == []
