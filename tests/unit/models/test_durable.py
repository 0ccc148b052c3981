"""Files that are written in one step: whole and new, or as they were."""

import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from models.durable import Step, file_sha256, write_atomically


def writes(content: bytes) -> Callable[[Path], object]:
    return lambda part: part.write_bytes(content)


def test_a_new_file_takes_the_old_ones_place_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"

    for content in (b"old", b"new"):
        write_atomically(path, writes(content))

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    def half(part: Path) -> None:
        part.write_bytes(b"ha")
        raise failure

    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    with pytest.raises(failure):
        write_atomically(path, half)

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_makes_no_file_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "file.bin", lambda part: None)

    assert list(tmp_path.iterdir()) == []


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    steps: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        steps.append("fsync of " + ("the folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "the file"))
        fsync(descriptor)

    def after(step: Step, file: Path) -> None:
        steps.append(step)
        assert file.read_bytes() == b"new"
        assert (file == path) == path.exists() == (step == "renamed")
        assert file.name.startswith("file.bin")

    monkeypatch.setattr(os, "fsync", noted)
    write_atomically(path, writes(b"new"), after)

    assert steps == ["written", "fsync of the file", "synced", "renamed", "fsync of the folder"]


def test_several_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    contents = [bytes([number]) * 100_000 for number in range(4)]
    together = threading.Barrier(len(contents))

    def write(content: bytes, part: Path) -> None:
        together.wait()
        part.write_bytes(content)
        together.wait()

    threads = [
        threading.Thread(target=write_atomically, args=(path, lambda part, content=content: write(content, part)))
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_of_a_file_is_that_of_all_its_bytes_wherever_an_open_one_stands(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5_000  # more than is read at once
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    stream = io.BytesIO(content)
    stream.seek(1_000)

    digests = {file_sha256(path), file_sha256(stream)}

    assert digests == {hashlib.sha256(content).hexdigest()}
