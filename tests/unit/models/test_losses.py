"""Losses, each against a slow, obvious computation."""

import math

import pytest
import torch

from models.losses import SmoothedSoftmax, nt_xent


def test_a_smoothed_softmax_is_the_cross_entropy_with_a_share_for_every_class() -> None:
    head = SmoothedSoftmax(5, 4, label_smoothing=0.1)
    embedding, labels = torch.randn(3, 5), torch.tensor([3, 0, 3])

    found = head(embedding, labels)

    log_shares = (embedding @ head.linear.weight.T).log_softmax(dim=1)
    wanted = torch.full((3, 4), 0.1 / 4)
    wanted[range(3), labels] += 0.9
    assert torch.allclose(found, -(wanted * log_shares).sum(dim=1).mean())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_nt_xent_is_the_equation_written_out(count: int) -> None:
    first, second = torch.randn(count, 4), torch.randn(count, 4)
    views = [*first, *second]

    def similarity(i: int, k: int) -> float:
        return float(torch.dot(views[i], views[k]) / (views[i].norm() * views[k].norm()))

    total = 0.0
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        others = sum(math.exp(similarity(i, k) / 0.5) for k in range(2 * count) if k != i)
        total -= math.log(math.exp(similarity(i, j) / 0.5) / others)

    assert float(nt_xent(first, second, 0.5)) == pytest.approx(total / (2 * count), abs=1e-5)
    assert float(nt_xent(second, first, 0.5)) == pytest.approx(total / (2 * count), abs=1e-5)
