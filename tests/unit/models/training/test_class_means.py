"""The choice of how far h's output is drawn to class means, and the means."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from models.training.class_means import NOT_USED, Setting, choose_setting, class_means, classes_to_leave_out
from models.training.features import PairedFeatures
from models.transformation import Transformation

CLASSES = 10
DIM = 6
LEFT_OUT = torch.tensor([8, 9])


def rows_of(labels: Tensor, seed: int) -> PairedFeatures:
    """Rows of classes apart from each other; the embedding is the target, seen through noise."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9))
    target = means[labels % CLASSES] + 0.5 * torch.randn(len(labels), DIM, generator=generator)
    return PairedFeatures(target + torch.randn(target.shape, generator=generator), None, target, labels)


def identity() -> Transformation:
    """An h that gives what it is given."""
    network = Transformation(DIM, None, DIM, members=None, linear=True)
    assert network.linear_map is not None
    with torch.no_grad():
        network.linear_map.weights.weight.copy_(torch.eye(DIM))
        network.linear_map.weights.bias.zero_()
    return network


def chosen(
    held_out: PairedFeatures, learned: PairedFeatures | None = None, probe: Transformation | None = None
) -> Setting:
    learned = rows_of(torch.arange(1_000) % CLASSES, 0) if learned is None else learned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return choose_setting(probe or identity(), learned, held_out, LEFT_OUT)


def test_means_are_used_where_they_help_and_classes_that_were_left_out_lose_nothing() -> None:
    assert chosen(rows_of(torch.arange(600) % CLASSES, 1)).share > 0


@pytest.mark.parametrize("of_left_out", [[], [8], [8, 9]])
def test_means_are_not_used_where_no_held_out_query_of_a_class_left_out_can_tell(of_left_out: list[int]) -> None:
    labels = torch.cat([torch.arange(600) % 8, torch.tensor(of_left_out, dtype=torch.int64)])

    assert chosen(rows_of(labels, 1)) is NOT_USED


def test_means_are_not_used_where_nothing_is_held_out_or_every_label_is_there_once() -> None:
    assert chosen(rows_of(torch.arange(0), 1)) is NOT_USED
    assert chosen(rows_of(torch.arange(CLASSES), 1)) is NOT_USED


def test_means_are_not_used_where_all_targets_of_a_class_are_the_same() -> None:
    labels = torch.arange(1_000) % CLASSES
    apart = torch.eye(CLASSES)[labels, :DIM]

    assert chosen(rows_of(labels, 1), PairedFeatures(apart, None, apart, labels)) is NOT_USED


def test_a_probe_that_learned_nothing_finite_chooses_no_means() -> None:
    probe = identity()
    assert probe.linear_map is not None
    torch.nn.init.constant_(probe.linear_map.weights.bias, torch.nan)

    assert chosen(rows_of(torch.arange(600) % CLASSES, 1), probe=probe) is NOT_USED


def test_means_and_scatter_are_those_of_the_rows_whatever_the_labels_are() -> None:
    numbers = torch.tensor([-3, 10**12, 5])
    pairs = rows_of(numbers[torch.arange(90) % 3], 0)
    assert pairs.labels is not None

    drawing, scatter = class_means(pairs)

    rows = [pairs.target[pairs.labels == number] for number in sorted(numbers.tolist())]
    expected = torch.stack([of_class.mean(dim=0) for of_class in rows])
    torch.testing.assert_close(drawing.means, expected)
    distances = torch.cat(
        [(of_class - mean).square().sum(dim=1) for of_class, mean in zip(rows, expected, strict=True)]
    )
    assert scatter == pytest.approx(float(distances.mean()))


@pytest.mark.parametrize(("classes", "left_out"), [(0, 0), (4, 0), (5, 2), (10, 2), (15, 3), (100, 20)])
def test_a_fifth_of_the_classes_is_left_out_and_none_where_there_are_few(classes: int, left_out: int) -> None:
    labels = 7 * torch.arange(3 * classes).remainder(max(1, classes))

    found = classes_to_leave_out(labels, torch.Generator().manual_seed(0))

    assert len(np.unique(found.numpy())) == left_out
    assert bool(torch.isin(found, labels).all())
