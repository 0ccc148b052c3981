"""Batches and rates that trainings share."""

import math

import pytest
import torch
from torch import nn

from models.training.loop import shuffled_batches, warm_up_then_cosine


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (3, 1024, [3]), (1, 4, [1]), (5, 1, [1, 1, 1, 2])],
)
def test_every_sample_comes_once_and_no_batch_is_left_with_one(count: int, batch: int, sizes: list[int]) -> None:
    batches = list(shuffled_batches(count, batch, torch.Generator().manual_seed(0)))

    assert [len(positions) for positions in batches] == sizes
    assert sorted(int(position) for positions in batches for position in positions) == list(range(count))


def test_the_rate_rises_linearly_then_falls_as_a_cosine() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warm_up_then_cosine(optimizer, 80, 5)

    rates = []
    for _ in range(80):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5:] == pytest.approx([1 + math.cos(math.pi * step / 75) for step in range(75)])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
