"""What the default recipe adds to the paper's: several members, a linear map, the target's support, and class means."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.artifacts import load_transformation_network, save_network
from models.metrics import cmc
from models.training.features import PairedFeatures
from models.training.linear_map import best_share
from models.training.transformation import FittedTransformation, Task, TransformationTraining, train_transformation
from models.transformation import Transformation

CLASSES = 20
CONFIG = TransformationTraining(epochs=6, warm_up_epochs=1, batch=64, inner_dim=8, learning_rate=5e-3)
BY_CLASS = replace(CONFIG, task="class", inner_dim=32, members=4)


def classes_apart(seed: int, images: int = 3_000, noise: float = 0.5) -> PairedFeatures:
    """Images of 20 classes, a little apart from each other in the new space; the old space sees them through noise."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(CLASSES, 12, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(images) % CLASSES
    target = (means[labels] + 0.2 * torch.randn(images, 12, generator=generator)).clamp(min=0)
    embedding = target[:, :10] + noise * torch.randn(images, 10, generator=generator)
    return PairedFeatures(embedding, None, target, labels)


def output_of(network: Transformation, pairs: PairedFeatures) -> Tensor:
    with torch.inference_mode():
        output: Tensor = network(pairs.embedding, pairs.side_information)
    return output


def error_of(network: Transformation, pairs: PairedFeatures) -> float:
    return float((output_of(network, pairs) - pairs.target).square().mean())


def own_item_first(network: Transformation, pairs: PairedFeatures) -> float:
    numbers = np.arange(len(pairs))
    return cmc(pairs.target.numpy(), numbers, output_of(network, pairs).numpy(), numbers, ks=(1,))[1]


def test_the_paper_recipe_is_one_network_and_nothing_else() -> None:
    fitted = train_transformation(classes_apart(0), replace(BY_CLASS, epochs=2, recipe="paper", members=None))

    config = fitted.network.config()
    assert (config["members"], config["linear"], config["non_negative"], config["classes"]) == (1, False, False, None)
    assert fitted.choices == {"members": 1, "inner_dim": 32}


def test_the_default_recipe_errs_less_than_the_papers_on_images_that_were_not_learned_from() -> None:
    learned, asked = classes_apart(0), classes_apart(1)

    paper = train_transformation(learned, replace(CONFIG, recipe="paper")).network
    default = train_transformation(learned, CONFIG).network

    assert error_of(default, asked) < error_of(paper, asked)
    assert own_item_first(default, asked) >= own_item_first(paper, asked)


def test_the_output_is_the_mean_of_the_members_and_a_share_of_the_linear_map() -> None:
    pairs = classes_apart(0)
    fitted = train_transformation(pairs, replace(CONFIG, members=3))

    network = fitted.network
    assert network.linear_map is not None
    with torch.inference_mode():
        members = torch.stack([member(pairs.embedding, pairs.embedding) for member in network.members])
        linear = network.linear_map(pairs.embedding)
    share = fitted.choices["linear_share"]
    expected = (1 - share) * members.mean(dim=0) + share * linear
    assert len(members) == fitted.choices["members"] == 3
    assert torch.allclose(output_of(network, pairs), expected.relu(), atol=1e-5)


@pytest.mark.parametrize("task", ["instance", "class"])
def test_the_share_is_the_one_that_is_best_for_every_kind_of_view_of_images_that_were_not_learned_from(
    task: Task,
) -> None:
    """The second view says nothing of the target's sign: a line does not fit it."""
    pairs = classes_apart(0)
    both = PairedFeatures(
        torch.cat([pairs.embedding, (pairs.embedding - 0.5).square()]),
        None,
        pairs.target.repeat(2, 1),
        pairs.labels,
        views=2,
        kinds=2,
    )

    fitted = train_transformation(both, replace(CONFIG, epochs=30, inner_dim=32, task=task))

    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(CONFIG.seed))
    held_out = both.take(order[: len(both) // 10])
    shares = [_best_share(fitted.network, held_out), _best_share(fitted.network, held_out.first_view())]
    assert fitted.choices["linear_share"] == pytest.approx(shares[0])
    assert shares[0] != shares[1]


def _best_share(network: Transformation, held_out: PairedFeatures) -> float:
    assert network.linear_map is not None
    with torch.inference_mode():
        mean = network.estimates(held_out.embedding).mean(dim=0)
        return best_share(mean, network.linear_map(held_out.embedding), held_out.target)


def test_with_few_pairs_the_linear_map_is_used_alone_and_the_members_are_left_away() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, side = torch.randn(120, 6, generator=generator), torch.randn(120, 4, generator=generator)
    target = torch.cat([embedding, side], dim=1) @ torch.randn(10, 5, generator=generator) + 3
    pairs = PairedFeatures(embedding, side, target, None)

    fitted = train_transformation(pairs, replace(CONFIG, epochs=2))

    assert fitted.choices["linear_share"] == 1.0
    assert fitted.network.config()["members"] is None
    assert error_of(fitted.network, pairs) < 1e-3


def test_too_few_samples_to_hold_any_out_leave_the_members_alone() -> None:
    fitted = train_transformation(classes_apart(0, images=9), replace(CONFIG, epochs=1))

    assert (fitted.choices.get("linear_share"), fitted.network.config()["linear"]) == (None, False)


@pytest.mark.parametrize("lowest", [0.0, -0.1])
def test_the_output_is_negative_only_where_a_target_is(lowest: float) -> None:
    pairs = classes_apart(0)
    pairs = replace(pairs, target=pairs.target.clamp(min=0) + lowest, labels=None)

    network = train_transformation(pairs, replace(CONFIG, epochs=2)).network

    with torch.inference_mode():
        output = network(10 * torch.randn(500, 10))
    assert bool((output >= 0).all()) == (lowest == 0.0)


def test_labels_change_nothing_where_items_are_searched_for() -> None:
    pairs = classes_apart(0)

    with_labels = train_transformation(pairs, replace(CONFIG, epochs=2)).network
    without = train_transformation(replace(pairs, labels=None), replace(CONFIG, epochs=2)).network

    assert torch.equal(output_of(with_labels, pairs), output_of(without, pairs))
    assert with_labels.class_means is None


def test_by_class_a_fifth_of_the_classes_is_left_out_and_the_output_drawn_as_was_chosen() -> None:
    pairs = classes_apart(0)

    fitted = train_transformation(pairs, BY_CLASS)

    chosen, drawing = fitted.choices["class_means"], fitted.network.class_means
    assert fitted.choices["classes_left_out"] == 4
    assert (chosen is None) == (drawing is None)
    if drawing is not None:
        assert len(drawing.means) == CLASSES
        assert float(drawing.share) == pytest.approx(chosen["share"])


@pytest.mark.parametrize("what", ["no labels", "no label twice", "labels by chance", "one class"])
def test_without_classes_there_are_no_class_means(what: str) -> None:
    by_chance = torch.randint(CLASSES, (3_000,), generator=torch.Generator().manual_seed(3))
    labels = {
        "no labels": None,
        "no label twice": torch.arange(3_000),
        "labels by chance": by_chance,
        "one class": torch.zeros(3_000, dtype=torch.int64),
    }[what]

    fitted = train_transformation(replace(classes_apart(0), labels=labels), replace(BY_CLASS, epochs=2))

    assert fitted.network.config()["classes"] is None
    assert fitted.choices.get("class_means") is None
    assert ("class_means" in fitted.choices) == (labels is not None)


@pytest.mark.parametrize("config", [CONFIG, BY_CLASS])
def test_what_was_learned_is_an_artifact_that_gives_the_same(config: TransformationTraining) -> None:
    pairs = classes_apart(0)
    fitted: FittedTransformation = train_transformation(pairs, config)

    loaded = load_transformation_network(
        save_network(fitted.network), from_dim=10, side_information_dim=None, to_dim=12
    )

    found = loaded(pairs.embedding.numpy(), None)
    np.testing.assert_allclose(found, output_of(fitted.network, pairs).numpy(), rtol=1e-4, atol=1e-5)
