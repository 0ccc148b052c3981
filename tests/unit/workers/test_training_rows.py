"""The rows of a training: which are learned from and which are held out, from files of any sizes."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.training.transformation import TransformationTraining, train_transformation
from service.blobs import BlobStore
from service.domain.training.files import FeatureRows, TrainingFiles, label_numbers
from service.tables import ModelVersion
from workers.training_rows import TrainingRows, load_rows

COUNT = 50


def some_rows(
    count: int = COUNT, *, g: bool = True, labels: bool = True, unread: int = 0, chained: int = 0
) -> FeatureRows:
    """Return rows that can be told apart by their first number, of images of which `unread` could not be read. What
    chained transformation c gave for them has that number and 1,000·(c + 1)."""
    generator = np.random.default_rng(3)
    number = np.arange(count, dtype=np.float32)[:, None]

    def vectors(dim: int) -> NDArray[np.float32]:
        return np.concatenate([number, generator.standard_normal((count, dim - 1))], axis=1).astype(np.float32)

    digests = np.arange((count + unread) * 32, dtype=np.uint32).astype(np.uint8).reshape(-1, 32)
    return FeatureRows(
        embedding_from=vectors(6),
        side_information_from=vectors(5),
        embedding_to=vectors(8),
        side_information_to=vectors(4) if g else None,
        labels=label_numbers([f"class {row % 3}" for row in range(count)]) if labels else None,
        chained_embedding_from=np.stack([vectors(6) + 1_000 * (c + 1) for c in range(chained)]) if chained else None,
        chained_side_information_from=np.stack([vectors(5) for _ in range(chained)]) if chained else None,
        source_sha256=digests if unread else None,
    )


def part_of(rows: FeatureRows, start: int, stop: int) -> FeatureRows:
    arrays = {name: array for name, array in vars(rows).items() if array is not None}
    return FeatureRows(
        **{
            name: array[:, start:stop] if name.startswith("chained") else array[start:stop]
            for name, array in arrays.items()
        }
    )


@pytest.fixture
def files(tmp_path: Path) -> TrainingFiles:
    return TrainingFiles(BlobStore(str(tmp_path)), "0123")


def stored_and_loaded(
    files: TrainingFiles, rows: FeatureRows, *ends: int, seed: int = 0, normalize: bool = False
) -> TrainingRows:
    """Store the rows in files that end at these positions, and load them."""
    for start, end in zip((0, *ends), (*ends, len(rows)), strict=True):
        files.add_rows(start, end, part_of(rows, start, end))
    before, after = ModelVersion(normalize=normalize), ModelVersion(normalize=False)
    return load_rows(files, files.row_ranges(), before, after, seed, "cpu")


def numbers(vectors: NDArray[np.float32]) -> list[int]:
    return [int(row[0]) for row in vectors]


def test_each_row_is_either_learned_from_or_held_out_and_its_parts_stay_together(files: TrainingFiles) -> None:
    rows = some_rows()

    loaded = stored_and_loaded(files, rows, 7, 8, 30)

    assert loaded.g is not None
    assert rows.side_information_to is not None
    learned, held = numbers(loaded.h.embedding.numpy()), numbers(loaded.held_out.embedding_from)
    assert (len(held), sorted(learned + held)) == (5, list(range(COUNT)))
    np.testing.assert_array_equal(loaded.h.target.numpy(), rows.embedding_to[learned])
    np.testing.assert_array_equal(loaded.g.target.numpy(), rows.side_information_to[learned])
    np.testing.assert_array_equal(loaded.held_out.embedding_to, rows.embedding_to[held])


def test_what_is_held_out_depends_on_the_seed_and_not_on_the_files(tmp_path: Path) -> None:
    def held_out(name: str, seed: int, *ends: int) -> list[int]:
        files = TrainingFiles(BlobStore(str(tmp_path / name)), "0123")
        return numbers(stored_and_loaded(files, some_rows(), *ends, seed=seed).held_out.embedding_from)

    assert held_out("a", 0) == held_out("b", 0, 1, 20) != held_out("c", 1)


@pytest.mark.parametrize(("count", "held_out"), [(9, 0), (10, 1), (19, 1), (50_100, 5_000)])
def test_a_tenth_is_held_out_and_never_more_than_5000(files: TrainingFiles, count: int, held_out: int) -> None:
    loaded = stored_and_loaded(files, some_rows(count, g=False, labels=False))

    assert (len(loaded.held_out), len(loaded.h)) == (held_out, count - held_out)


def test_labels_are_numbered_from_0_on_and_alike_on_both_sides(files: TrainingFiles) -> None:
    loaded = stored_and_loaded(files, some_rows(), 25)

    assert loaded.h.labels is not None
    assert loaded.held_out.labels is not None
    numbered = dict(zip(numbers(loaded.h.embedding.numpy()), loaded.h.labels.tolist(), strict=True))
    numbered |= dict(zip(numbers(loaded.held_out.embedding_from), loaded.held_out.labels.tolist(), strict=True))
    assert set(numbered.values()) == {0, 1, 2}
    assert len({(row % 3, label) for row, label in numbered.items()}) == 3


def test_without_side_information_of_the_new_version_there_is_nothing_for_g(files: TrainingFiles) -> None:
    loaded = stored_and_loaded(files, some_rows(g=False, labels=False))

    assert (loaded.g, loaded.h.labels, loaded.held_out.labels) == (None, None, None)


def test_only_embeddings_of_a_version_that_normalises_are_normalised(files: TrainingFiles) -> None:
    loaded = stored_and_loaded(files, some_rows(), normalize=True)

    np.testing.assert_allclose(np.linalg.norm(loaded.h.embedding, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(loaded.held_out.embedding_from, axis=1), 1, rtol=1e-6)
    assert np.linalg.norm(loaded.h.target, axis=1).max() > 10


def test_images_that_could_not_be_read_are_counted_and_belong_to_the_digest(files: TrainingFiles) -> None:
    rows = some_rows(unread=4)
    assert rows.source_sha256 is not None

    version = ModelVersion(normalize=False)
    files.add_rows(0, COUNT + 4, rows)

    loaded = load_rows(files, files.row_ranges(), version, version, 0, "cpu")

    assert loaded.skipped == 4
    assert loaded.images_sha256 == hashlib.sha256(rows.source_sha256.tobytes()).hexdigest()


def test_vectors_that_did_not_come_from_images_have_no_digest(files: TrainingFiles) -> None:
    loaded = stored_and_loaded(files, some_rows())

    assert (loaded.skipped, loaded.images_sha256) == (0, None)


def test_what_chained_transformations_give_are_further_views_of_the_same_images(files: TrainingFiles) -> None:
    rows = some_rows(chained=2)

    loaded = stored_and_loaded(files, rows, 7, 30)

    assert loaded.g is not None
    assert rows.chained_side_information_from is not None
    for pairs in (loaded.h, loaded.g):
        assert (pairs.views, len(pairs)) == (3, 45)
        by_view = np.array(numbers(pairs.embedding.numpy())).reshape(3, 45)
        np.testing.assert_array_equal(by_view - 1_000 * np.arange(3)[:, None], np.tile(by_view[0], (3, 1)))
        np.testing.assert_array_equal(pairs.target[:, 0], np.tile(by_view[0], 3))
    assert loaded.h.side_information is not None
    images = numbers(loaded.h.embedding.numpy())[:45]
    np.testing.assert_array_equal(loaded.h.side_information[45:90], rows.chained_side_information_from[0][images])
    assert loaded.h.labels is not None
    assert len(loaded.h.labels) == 45


def test_held_out_images_keep_what_chained_transformations_give_apart(files: TrainingFiles) -> None:
    rows = some_rows(chained=2)

    held_out = stored_and_loaded(files, rows, 7, 30).held_out

    chosen = numbers(held_out.embedding_from)
    assert rows.chained_embedding_from is not None
    assert held_out.chained_embedding_from is not None
    np.testing.assert_array_equal(held_out.embedding_to, rows.embedding_to[chosen])
    np.testing.assert_array_equal(held_out.chained_embedding_from, rows.chained_embedding_from[:, chosen])


def test_an_h_that_learned_from_a_chain_errs_less_on_what_the_chain_gives(tmp_path: Path) -> None:
    """The chain gives twice the embedding and no side-information to speak of."""
    plain = some_rows(600, g=False, labels=False)
    plain.embedding_from[:, 0] = plain.embedding_to[:, 0] = 0
    plain.embedding_to[:, 1:5] = plain.embedding_from[:, 1:5]
    assert plain.side_information_from is not None
    given = (2 * plain.embedding_from, 0.1 * plain.side_information_from)
    chained = replace(plain, chained_embedding_from=given[0][None], chained_side_information_from=given[1][None])
    config = TransformationTraining(epochs=20, inner_dim=16, batch=64, learning_rate=5e-3, recipe="paper")

    errors = []
    for number, rows in enumerate((plain, chained)):
        files = TrainingFiles(BlobStore(str(tmp_path / str(number))), "0123")
        h = train_transformation(stored_and_loaded(files, rows).h, config).network
        with torch.inference_mode():
            found = h(*(torch.from_numpy(values) for values in given))
        errors.append(float((found[:, 1:5] - torch.from_numpy(plain.embedding_to[:, 1:5])).square().mean()))

    assert errors[1] < 0.5 * errors[0]
