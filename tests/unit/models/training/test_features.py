"""Features that are computed once and kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbones import ConvEncoder
from models.training.features import PairedFeatures, cached_features
from models.training.fitting import embed_images
from tests.unit.models.training.toy_images import toy_images


def encoder(seed: int) -> ConvEncoder:
    torch.manual_seed(seed)
    return ConvEncoder(4, 6).eval()


def test_features_are_computed_once_and_view_0_is_the_image_as_it_is(tmp_path: Path) -> None:
    computed: list[int] = []
    images, network = toy_images(20, seed=0), encoder(0)

    first, again = (
        cached_features(tmp_path, network, images, views=3, progress=lambda done, total: computed.append(done))
        for _ in range(2)
    )

    assert computed == [1, 2, 3]
    assert first.shape == (3, 20, 6)
    assert np.array_equal(first, again)
    np.testing.assert_allclose(first[0], embed_images(network, images).numpy(), rtol=1e-5)
    assert not np.allclose(first[1], first[0])
    assert not np.allclose(first[2], first[1])


def test_two_networks_see_the_same_views(tmp_path: Path) -> None:
    images, network = toy_images(20, seed=0), encoder(0)

    first = cached_features(tmp_path / "a", network, images, views=2)
    torch.manual_seed(123)
    second = cached_features(tmp_path / "b", network, images, views=2)

    assert np.array_equal(first, second)


def test_another_network_other_images_or_more_views_are_computed_anew(tmp_path: Path) -> None:
    images = toy_images(20, seed=0)
    kept = [
        cached_features(tmp_path, encoder(0), images),
        cached_features(tmp_path, encoder(1), images),
        cached_features(tmp_path, encoder(0), replace(images, digest="other")),
        cached_features(tmp_path, encoder(0), images, views=2),
    ]

    assert len(list(tmp_path.glob("*.npy"))) == len(list(tmp_path.glob("*.json"))) == len(kept)
    assert not np.allclose(kept[0], kept[1])


def test_an_interrupted_computation_leaves_no_array(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(tmp_path, encoder(0), toy_images(20, seed=0), progress=stop)

    assert list(tmp_path.glob("*.npy")) == []


def numbered(images: int, views: int, kinds: int) -> PairedFeatures:
    """Return features whose values are the numbers of their rows."""
    rows = torch.arange(images * views, dtype=torch.float32)[:, None]
    return PairedFeatures(rows, rows + 0.25, rows + 0.5, torch.arange(images), views, kinds)


@pytest.mark.parametrize(("views", "kinds"), [(1, 1), (4, 1), (4, 2), (3, 3)])
def test_an_epoch_takes_every_image_once_of_each_kind(views: int, kinds: int) -> None:
    pairs, generator = numbered(5, views, kinds), torch.Generator().manual_seed(0)
    seen: set[tuple[int, int]] = set()

    for _ in range(40):
        batches = list(pairs.batches(4, generator))
        rows = torch.cat([batch.embedding for batch in batches])[:, 0].long()
        assert torch.equal(rows % 5, torch.cat([batch.labels for batch in batches if batch.labels is not None]))
        for batch in batches:
            assert batch.side_information is not None
            assert torch.equal(batch.side_information, batch.embedding + 0.25)
            assert torch.equal(batch.target, batch.embedding + 0.5)
        kind = rows // 5 // (views // kinds)
        assert sorted(zip((rows % 5).tolist(), kind.tolist(), strict=True)) == [
            (image, number) for image in range(5) for number in range(kinds)
        ]
        seen |= set(zip((rows % 5).tolist(), (rows // 5).tolist(), strict=True))

    assert len(seen) == 5 * views


def test_the_first_views_are_those_of_each_kind() -> None:
    pairs = numbered(5, 4, 2).take(torch.tensor([3, 1])).first_views()

    assert pairs.embedding[:, 0].tolist() == [3, 1, 13, 11]
    assert (pairs.views, pairs.kinds, len(pairs)) == (2, 2, 2)
    assert pairs.first_view().embedding[:, 0].tolist() == [3, 1]
