"""Data sets in the operator's folder: refused where they lead out of it or hold nothing to learn from."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.networks import image_bytes
from tests.paired_vectors import paired_columns, parquet
from tests.trainings import ask, begin, check_refused, files_of_trainings, job_of, write_images
from workers.app import WorkerParts
from workers.training import advance_training


def link_folder(root: Path) -> None:
    write_images(root.parent / "elsewhere")
    (root / "bad").symlink_to(root.parent / "elsewhere")


def link_class(root: Path) -> None:
    write_images(root.parent / "elsewhere")
    (root / "bad").mkdir()
    (root / "bad" / "a").symlink_to(root.parent / "elsewhere" / "a")


def link_image(root: Path) -> None:
    write_images(root / "bad")
    (root.parent / "secret.png").write_bytes(image_bytes(1))
    (root / "bad" / "a" / "secret.png").symlink_to(root.parent / "secret.png")


def link_parquet(root: Path) -> None:
    (root.parent / "secret.parquet").write_bytes(parquet(paired_columns()))
    (root / "bad").mkdir()
    (root / "bad" / "x.parquet").symlink_to(root.parent / "secret.parquet")


def few_images(root: Path) -> None:
    (root / "bad" / "a").mkdir(parents=True)
    (root / "bad" / "a" / "1.png").write_bytes(image_bytes(1))


def other_parquet(root: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), root / "bad")


def no_parquet(root: Path) -> None:
    (root / "bad").write_bytes(b"x")


def nothing(root: Path) -> None:
    (root.parent / "pairs.parquet").write_bytes(parquet(paired_columns()))


BAD_DATASETS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "not there": (nothing, "bad", "no data set 'bad'"),
    "above the folder": (nothing, "../pairs.parquet", "no data set"),
    "somewhere else": (nothing, "/etc", "no data set"),
    "a web address": (nothing, "https://example.com/pairs.parquet", "no data set"),
    "NUL in the name": (nothing, "a\0b", "no data set"),
    "a name too long": (nothing, "x" * 900, "no data set"),
    "half a character": (nothing, "\ud800", "JSON"),
    "empty": (nothing, ".", "neither Parquet files nor class folders"),
    "a link out": (link_folder, "bad", "no data set"),
    "a class that is a link out": (link_class, "bad", "leads out"),
    "an image that is a link out": (link_image, "bad", "leads out"),
    "a Parquet file that is a link out": (link_parquet, "bad", "leads out"),
    "too few images": (few_images, "bad", "at least 100 images; there are 1"),
    "other columns": (other_parquet, "bad", "neither columns image and label nor"),
    "not Parquet": (no_parquet, "bad", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_bad_datasets_are_refused_with_a_sentence(
    versions: TestClient, settings: Settings, datasets: Path, name: str
) -> None:
    prepare, dataset, sentence = BAD_DATASETS[name]
    prepare(datasets)

    answer = ask(versions, dataset=dataset)

    check_refused(versions, settings, answer, 422, sentence)


def test_without_a_folder_from_the_operator_every_dataset_is_refused(
    versions: TestClient, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "pairs.parquet").write_bytes(parquet(paired_columns()))

    answer = ask(versions, dataset=str(tmp_path / "pairs.parquet"))

    check_refused(versions, settings, answer, 422, "has not set GALLERY_DATASETS")


def test_images_that_changed_meanwhile_fail_the_training(
    versions: TestClient, worker: WorkerParts, datasets: Path, settings: Settings
) -> None:
    write_images(datasets / "photos")
    job_id = begin(versions, dataset="photos")
    (datasets / "photos" / "a" / "00.png").unlink()

    assert not advance_training(worker, job_id)

    job = job_of(versions, job_id)
    assert (job["state"], job["result"]) == ("failed", None)
    assert "changed since" in job["error"]
    assert files_of_trainings(settings) == []
