"""Galleries through the client, on the real application."""

import csv
import errno
import json
import os
import threading
import unicodedata
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from gallery_upgrade import Client, Retries
from gallery_upgrade.arrays import vectors_table
from gallery_upgrade.cli import main
from gallery_upgrade.errors import WouldDeleteMost
from gallery_upgrade.galleries import Gallery
from gallery_upgrade.problems import BadRows, GalleryExists, UnknownGallery, UnknownItem
from gallery_upgrade.uploading import Interrupted
from tests.networks import image_bytes
from tests.scenario import register_version


@pytest.fixture
def photos(client: TestClient, service: Client) -> Gallery:
    register_version(client, "v1")
    return service.galleries.create("photos", model_version="v1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images in two folders, one of them with a name that NFC changes, and what is no image."""
    folder = tmp_path / "pictures"
    (folder / "cats").mkdir(parents=True)
    for seed in range(5):
        (folder / "cats" / f"{seed}.png").write_bytes(image_bytes(seed))
    (folder / "a b.PNG").write_bytes(image_bytes(5))
    (folder / unicodedata.normalize("NFD", "é.png")).write_bytes(image_bytes(6))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(image_bytes(7))
    return folder


def upload(gallery: Gallery, folder: Path, **options: object) -> dict[str, object]:
    """Upload the folder with a ledger and a list of its own; return what came of it, without what is nought."""
    beside = folder.parent
    uploaded = gallery.upload_folder(
        folder,
        ledger=beside / "ledger.sqlite",
        rejected=beside / "rejected.csv",
        **options,  # type: ignore[arg-type]
    )
    return {name: value for name, value in vars(uploaded).items() if value}


def ids(gallery: Gallery) -> set[str]:
    return {item.id for item in gallery.items()}


def test_a_folder_is_sent_once_and_then_only_what_changed(photos: Gallery, folder: Path) -> None:
    expected = {"é.png", "a b.PNG", *(f"cats/{seed}.png" for seed in range(5))}

    first = upload(photos, folder, describe=lambda path: {"label": path.parent.name})
    again = upload(photos, folder)
    os.utime(folder / "cats/0.png")
    (folder / "cats/1.png").write_bytes(image_bytes(11))
    (folder / "cats/2.png").unlink()
    changed = upload(photos, folder)
    mirrored = upload(photos, folder, delete_missing=True)

    assert first == {"sent": 7, "created": 7}
    assert again == {"unchanged": 7}
    assert changed == {"sent": 1, "replaced": 1, "unchanged": 5}
    assert mirrored == {"unchanged": 6, "deleted": 1}
    assert ids(photos) == expected - {"cats/2.png"}
    assert photos.item("cats/3.png").label == "cats"


def test_files_that_are_no_images_are_listed_and_not_sent_again(photos: Gallery, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no pixels")
    only_bad = folder.parent / "bad" / "pictures"
    only_bad.mkdir(parents=True)
    (only_bad / "broken.jpg").write_bytes(b"no pixels either")

    first, again = upload(photos, folder), upload(photos, folder)
    alone = upload(photos, only_bad)

    assert (first["rejected"], first["created"]) == (1, 7)
    assert again == {"unchanged": 8, "reasons": first["reasons"]}
    assert (alone["sent"], alone["rejected"]) == (1, 1)
    with (folder.parent / "rejected.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["id", "reason"]
    assert [row[0] for row in rows[1:]] == ["broken.png"]
    (folder / "broken.png").write_bytes(image_bytes(8))
    assert upload(photos, folder)["created"] == 1
    assert (folder.parent / "rejected.csv").read_text() == "id,reason\n"


def test_a_file_whose_name_is_not_unicode_is_rejected_alone(photos: Gallery, folder: Path) -> None:
    odd = folder.rename(folder.with_name("pictures\udcff"))
    for name in (b"\xff\xfe.png", b"cats/\xe9.png"):
        (odd / os.fsdecode(name)).write_bytes(image_bytes(12))

    first, again = upload(photos, odd), upload(photos, odd, delete_missing=True)

    reason = "Its name is not Unicode (UTF-8), as an id has to be: rename it."
    reasons = {r"\xff\xfe.png": reason, r"cats/\xe9.png": reason}
    assert first == {"sent": 7, "created": 7, "reasons": reasons}
    assert again == {"unchanged": 7, "reasons": reasons}
    with (odd.parent / "rejected.csv").open(newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream)) == [["id", "reason"], *map(list, sorted(reasons.items()))]
    by_default = photos.upload_folder(odd, rejected=odd.parent / "rejected.csv")
    assert (by_default.sent, by_default.reasons) == (7, reasons)
    assert len(photos.search(odd / os.fsdecode(b"\xff\xfe.png"), k=3)) == 3


def test_files_that_vanish_meanwhile_are_named_and_their_items_kept(photos: Gallery, folder: Path) -> None:
    upload(photos, folder)
    for path in (folder / "cats").iterdir():
        path.write_bytes(image_bytes(20 + int(path.stem)))
    (folder / "link.png").symlink_to(folder / "nowhere.png")

    def vanish(path: Path) -> dict[str, str]:
        (folder / "cats/4.png").unlink(missing_ok=True)
        return {}

    (folder / "cats/0.png").write_bytes(b"P" * (33 * 2**20))  # a request of its own, before the last file is read
    uploaded = upload(photos, folder, describe=vanish, delete_missing=True, threads=1)

    assert (uploaded["missing"], "deleted" in uploaded) == (2, False)
    assert {"cats/4.png", "link.png"} <= uploaded["reasons"].keys()  # type: ignore[attr-defined] # a dict
    assert "cats/4.png" in ids(photos)


def test_a_folder_that_vanishes_meanwhile_is_an_error_and_deletes_nothing(photos: Gallery, folder: Path) -> None:
    upload(photos, folder)
    (folder / "a b.PNG").write_bytes(b"P" * (33 * 2**20))  # a request of its own, before the others are read
    for seed in range(5):
        (folder / "cats" / f"{seed}.png").write_bytes(image_bytes(20 + seed))

    def vanish(path: Path) -> dict[str, str]:
        if folder.exists():
            folder.rename(folder.with_name("elsewhere"))
        return {}

    with pytest.raises(NotADirectoryError, match=r"is no longer there\. What was sent is known"):
        upload(photos, folder, describe=vanish, delete_missing=True, threads=1)
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        upload(photos, folder, delete_missing=True)

    assert len(ids(photos)) == 7


def test_what_is_in_a_folder_that_cannot_be_read_is_not_gone(photos: Gallery, folder: Path) -> None:
    upload(photos, folder)
    (folder / "a b.PNG").unlink()
    scandir = os.scandir

    def closed(path: Path) -> Any:  # modes do not hold root back
        if os.fspath(path).endswith("cats"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", closed)
        uploaded = upload(photos, folder, delete_missing=True)

    assert uploaded == {
        "unchanged": 1,
        "deleted": 1,
        "reasons": {"cats/": "The folder cannot be read: Permission denied."},
    }
    assert len(ids(photos)) == 6


def test_most_items_are_deleted_only_where_that_was_said(photos: Gallery, folder: Path) -> None:
    upload(photos, folder)
    for seed in range(4):
        (folder / "cats" / f"{seed}.png").unlink()
    (folder / "new.png").write_bytes(image_bytes(9))

    with pytest.raises(WouldDeleteMost, match=r"Of 7 files that were sent from .*, 4 are gone"):
        upload(photos, folder, delete_missing=True)
    refused = len(ids(photos))
    deleted = upload(photos, folder, delete_missing=True, delete_most=True)

    assert refused == 7
    assert deleted == {"sent": 1, "created": 1, "unchanged": 3, "deleted": 4}


def test_an_interrupt_says_what_was_sent_and_the_next_upload_goes_on(photos: Gallery, folder: Path) -> None:
    (folder / "a b.PNG").write_bytes(b"P" * (33 * 2**20))  # a request of its own

    def interrupted(path: Path) -> dict[str, str]:
        if path.name == "0.png":
            raise KeyboardInterrupt
        return {}

    with pytest.raises(Interrupted, match=r"Interrupted after 1 files were sent\. The same upload again") as raised:
        upload(photos, folder, describe=interrupted, threads=1)

    assert raised.value.uploaded.rejected == 1
    assert upload(photos, folder)["created"] == 6


def test_an_interrupt_gives_up_what_is_tried_again(photos: Gallery, folder: Path) -> None:
    retried = threading.Event()

    class Away(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            retried.set()
            return httpx.Response(503, headers={"Retry-After": "3600"}, request=request)

    def interrupted(path: Path) -> dict[str, str]:
        if path.name == "0.png":  # in the second request
            retried.wait()
            raise KeyboardInterrupt
        return {}

    (folder / "a b.PNG").write_bytes(b"P" * (33 * 2**20))  # a request of its own
    away = Client("http://away", transport=Away(), retries=Retries(deadline_seconds=86_400.0))
    with away, pytest.raises(Interrupted, match="after 0 files"):
        upload(Gallery(away, photos.view), folder, describe=interrupted, threads=2)

    assert upload(photos, folder)["created"] == 6


def test_a_gallery_that_was_made_anew_gets_everything_again(service: Client, photos: Gallery, folder: Path) -> None:
    upload(photos, folder)
    photos.delete()

    assert upload(service.galleries.create("photos", model_version="v1"), folder) == {"sent": 7, "created": 7}


def test_an_upload_that_fails_keeps_what_was_answered(photos: Gallery, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(40):
        (folder / f"{seed}.png").write_bytes(image_bytes(seed))
    described: list[Path] = []

    def describe(path: Path) -> dict[str, str]:
        described.append(path)
        if len(described) == 20:  # in the second request
            raise RuntimeError("interrupted")
        return {}

    with pytest.raises(RuntimeError, match="interrupted"):
        upload(photos, folder, describe=describe, threads=1)
    sent = len(ids(photos))

    assert 0 < sent < 20
    assert upload(photos, folder) == {"sent": 40 - sent, "created": 40 - sent, "unchanged": sent}
    assert len(ids(photos)) == 40


def test_a_search_is_by_whatever_is_at_hand_and_answers_alike(photos: Gallery, folder: Path) -> None:
    upload(photos, folder)
    path = folder / "cats" / "3.png"

    found = [photos.search(query, k=3) for query in (path, str(path), path.read_bytes())]
    (batch,) = photos.vectors()
    vector = np.array(batch["embedding"].to_pylist()[batch["id"].to_pylist().index("cats/3.png")], dtype=np.float32)
    found.append(photos.search(vector, k=3))

    assert [hits.ids for hits in found] == [found[0].ids] * 4
    assert found[0][0].id == "cats/3.png"
    assert "cats/3.png" not in photos.search("cats/3.png", k=6).ids
    assert photos.search(path, k=6, filter={"id": {"in": ["é.png"]}}).ids == ["é.png"]
    assert [len(hits) for hits in photos.search_vectors(np.stack([vector, vector]), k=2)] == [2, 2]
    with pytest.raises(UnknownItem):
        photos.search("nowhere.png")


def test_a_search_goes_on_page_by_page(photos: Gallery, folder: Path) -> None:
    upload(photos, folder)
    path = folder / "cats" / "3.png"
    (batch,) = photos.vectors()
    vector = np.array(batch["embedding"].to_pylist()[batch["id"].to_pylist().index("cats/3.png")], dtype=np.float32)
    whole = photos.search(path, k=7).ids

    pages = [list(photos.search_pages(query, k=3)) for query in (path, vector, "cats/3.png")]
    few = list(photos.search_pages(path, k=3, filter={"id": {"in": ["é.png"]}}, exclude_id="cats/0.png"))

    assert [[len(page) for page in own] for own in pages] == [[3, 3, 1], [3, 3, 1], [3, 3]]
    assert [[id_ for page in own for id_ in page.ids] for own in pages] == [whole, whole, whole[1:]]
    assert [page.ids for page in few] == [["é.png"]]
    with pytest.raises(TypeError):
        next(photos.search_pages(np.stack([vector, vector])))


def test_a_search_finds_the_best_of_each_group(photos: Gallery, folder: Path) -> None:
    upload(photos, folder, describe=lambda path: {"label": path.parent.name, "metadata": {"name": path.name}})
    path = folder / "cats" / "3.png"

    hits = photos.search(path, k=2, group_by="label")
    more = photos.search(path, k=10, group_by="metadata.name")
    (vectors,) = photos.search_vectors([[0.0] * 6], k=3, group_by="label")

    assert (hits[0].id, hits[0].group) == ("cats/3.png", "cats")
    assert [hit.group for hit in hits] == ["cats", "pictures"]
    assert [hit.group for hit in more] == [hit.metadata["name"] for hit in photos.search(path, k=10)]
    assert {hit.group for hit in vectors} == {"cats", "pictures"}
    assert (hits.complete, more.complete, vectors.complete, photos.search(path).complete) == (True, True, True, None)


def test_a_command_shows_the_best_of_each_group(photos: Gallery, folder: Path, url: str) -> None:
    upload(photos, folder, describe=lambda path: {"label": path.parent.name})
    arguments = ["search", "photos", str(folder / "cats" / "3.png"), "--group-by", "label", "--url", url]

    told = CliRunner().invoke(main, arguments)
    as_json = CliRunner().invoke(main, [*arguments, "--json"])

    assert told.exit_code == as_json.exit_code == 0, told.output
    assert [hit["group"] for hit in json.loads(as_json.stdout)] == ["cats", "pictures"]
    assert "group" in told.stdout
    assert told.stdout.count(".png") + told.stdout.count(".PNG") == 2
    assert CliRunner().invoke(main, [*arguments[:-3], "colour", *arguments[-2:]]).exit_code == 1


def test_hits_are_tables_arrays_and_pictures(photos: Gallery, folder: Path) -> None:
    upload(photos, folder)

    hits = photos.search(folder / "cats" / "0.png", k=3)

    names, distances = hits.to_numpy()
    assert (names.tolist(), distances.tolist()) == (hits.ids, [hit.distance for hit in hits])
    assert hits.to_pandas()["id"].tolist() == hits.ids
    assert (hits.model_version, hits.exact) == ("v1", True)
    assert hits._repr_html_().count("data:image/jpeg;base64,") == 3


def test_vectors_go_out_and_in_as_arrow(service: Client, photos: Gallery, folder: Path) -> None:
    upload(photos, folder)
    copy = service.galleries.create("copy", model_version="v1", dtype="float16")

    table = pa.Table.from_batches(photos.vectors())
    count = copy.import_vectors(table)

    assert count == table.num_rows == 7
    again = pa.Table.from_batches(copy.vectors())
    assert again.sort_by("id").select(["id", "embedding"]) == table.sort_by("id").select(["id", "embedding"])
    bad = vectors_table(["x"], np.full((1, 6), np.nan, dtype=np.float32), np.zeros((1, 5), dtype=np.float32))
    with pytest.raises(BadRows) as raised:
        copy.import_vectors(bad)
    assert raised.value.errors[0]["row"] == 0


def test_galleries_are_listed_page_by_page_and_errors_have_classes(service: Client, photos: Gallery) -> None:
    for name in ("b", "c"):
        service.galleries.create(name, model_version="v1")

    names = [view.name for view in service.pages(service.api.list_galleries, limit=2)]

    assert sorted(names) == ["b", "c", "photos"]
    assert service.galleries.create("b", model_version="v1", exist_ok=True).name == "b"
    with pytest.raises(GalleryExists):
        service.galleries.create("b", model_version="v1")
    with pytest.raises(UnknownGallery, match="nowhere"):
        service.galleries.get("nowhere")
    service.galleries.delete("b")
    with pytest.raises(UnknownGallery):
        service.galleries.get("b")
    assert len(photos) == 0
