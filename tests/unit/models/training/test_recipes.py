"""What the default recipe adds to the paper's: the target's support, the class means of the new model, and views."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.artifacts import load_transformation_network, save_network
from models.metrics import RetrievalMetrics, retrieval_metrics
from models.training.features import PairedFeatures
from models.training.transformation import TransformationTraining, train_transformation
from models.transformation import ClassMeans, Transformation

CLASSES = 8
CONFIG = TransformationTraining(epochs=4, warm_up_epochs=1, batch=64, inner_dim=8, learning_rate=5e-3)


def classes_apart(seed: int, images: int = 2_000) -> PairedFeatures:
    """Images of 8 classes, a little apart from each other in the new space; the old space sees them through noise."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(CLASSES, 12, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(images) % CLASSES
    target = (means[labels] + 0.5 * torch.randn(images, 12, generator=generator)).clamp(min=0)
    embedding = target[:, :10] + 0.3 * torch.randn(images, 10, generator=generator)
    return PairedFeatures(embedding, None, target, labels)


def new_h(network: Transformation, pairs: PairedFeatures) -> RetrievalMetrics:
    assert pairs.labels is not None
    labels = pairs.labels.numpy()
    with torch.inference_mode():
        gallery = network(pairs.embedding).numpy()
    return retrieval_metrics(pairs.target.numpy(), labels, gallery, labels, self_match=True)


def test_class_means_make_retrieval_better_on_images_that_were_not_learned_from() -> None:
    learned, asked = classes_apart(0), classes_apart(1)

    network = train_transformation(learned, CONFIG)
    with_means = new_h(network, asked)
    network.class_means = None
    without = new_h(network, asked)

    assert with_means.map > without.map + 0.01
    assert with_means.cmc1 > without.cmc1


def test_the_paper_recipe_has_neither_support_nor_class_means() -> None:
    network = train_transformation(classes_apart(0), replace(CONFIG, epochs=2, recipe="paper"))

    assert (network.config()["non_negative"], network.config()["classes"]) == (False, None)


@pytest.mark.parametrize("what", ["no labels", "no label twice", "labels by chance"])
def test_without_classes_there_are_no_class_means(what: str) -> None:
    by_chance = torch.randint(CLASSES, (2_000,), generator=torch.Generator().manual_seed(3))
    labels = {"no labels": None, "no label twice": torch.arange(2_000), "labels by chance": by_chance}[what]
    network = train_transformation(replace(classes_apart(0), labels=labels), replace(CONFIG, epochs=2))

    assert network.config()["classes"] is None


@pytest.mark.parametrize("lowest", [0.0, -0.1])
def test_the_output_is_negative_only_where_a_target_is(lowest: float) -> None:
    pairs = classes_apart(0)
    pairs = replace(pairs, target=pairs.target.clamp(min=0) + lowest, labels=None)

    network = train_transformation(pairs, replace(CONFIG, epochs=2))

    with torch.inference_mode():
        output = network(10 * torch.randn(500, 10))
    assert bool((output >= 0).all()) == (lowest == 0.0)


def test_labels_of_classes_that_have_no_image_are_no_classes() -> None:
    pairs = classes_apart(0)
    assert pairs.labels is not None
    network = train_transformation(replace(pairs, labels=3 * pairs.labels + 5), CONFIG)

    assert network.config()["classes"] == CLASSES


def test_what_was_learned_is_an_artifact_that_gives_the_same() -> None:
    pairs = classes_apart(0)
    network = train_transformation(pairs, CONFIG)
    assert network.config()["classes"] == CLASSES

    loaded = load_transformation_network(save_network(network), from_dim=10, side_information_dim=None, to_dim=12)

    with torch.inference_mode():
        expected = network(pairs.embedding).numpy()
    np.testing.assert_allclose(loaded(pairs.embedding.numpy(), None), expected, rtol=1e-4, atol=1e-5)


def test_class_means_are_weighted_by_how_likely_each_class_is() -> None:
    generator = torch.Generator().manual_seed(0)
    estimate, means = torch.randn(20, 4, generator=generator), torch.randn(3, 4, generator=generator)
    shrinking = ClassMeans(3, 4)
    shrinking.means.copy_(means)
    shrinking.temperature.fill_(0.7)
    shrinking.share.fill_(0.4)

    found = shrinking(estimate)

    for row, z in zip(found, estimate, strict=True):
        weights = [float(torch.exp(-((z - mean) ** 2).sum() / 0.7)) for mean in means]
        likely = sum(weight * mean for weight, mean in zip(weights, means, strict=True)) / sum(weights)
        assert torch.allclose(row, 0.6 * z + 0.4 * likely, atol=1e-5)


def test_an_epoch_has_every_image_once_by_views_of_both_versions_alike() -> None:
    images, views = 7, 3
    numbers = torch.arange(images * views).float()
    pairs = PairedFeatures(numbers[:, None], -numbers[:, None], 10 * numbers[:, None], torch.arange(images), views)
    generator = torch.Generator().manual_seed(0)
    seen: set[int] = set()
    for _ in range(20):
        batches = list(pairs.batches(3, generator))
        rows = torch.cat([batch.embedding[:, 0] for batch in batches])
        labels = _labels(batches)
        assert [len(batch) for batch in batches] == [3, 4]
        assert sorted(labels.tolist()) == list(range(images))
        assert torch.equal(rows % images, labels.float())
        for batch in batches:
            assert batch.side_information is not None
            assert torch.equal(batch.side_information, -batch.embedding)
            assert torch.equal(batch.target, 10 * batch.embedding)
        seen |= set(rows.int().tolist())

    assert seen == set(range(images * views))


def test_some_images_are_taken_with_all_their_views() -> None:
    pairs = PairedFeatures(torch.arange(12.0)[:, None], None, torch.arange(12.0)[:, None], torch.arange(4), views=3)

    taken = pairs.take(torch.tensor([3, 0]))

    assert taken.embedding[:, 0].tolist() == [3, 0, 7, 4, 11, 8]
    assert (len(taken), _labels([taken]).tolist()) == (2, [3, 0])
    assert taken.first_view().embedding[:, 0].tolist() == [3, 0]


def _labels(batches: list[PairedFeatures]) -> Tensor:
    return torch.cat([batch.labels for batch in batches if batch.labels is not None])
