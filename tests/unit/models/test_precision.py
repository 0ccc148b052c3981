"""h and g in a shorter number format: chosen by a trial, and refused where the outputs would point elsewhere."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from models.artifacts import TransformationNetwork, load_transformation_network, save_network
from models.metrics import retrieval_metrics
from models.normalize import l2_normalize
from models.precision import Precision, faster_precision, fastest_precision
from models.transformation import Transformation
from tests.networks import transformation

DIM = 128
FORMATS: tuple[Precision, Precision] = ("float32", "bfloat16")


def load(network: Transformation, precision: Precision) -> TransformationNetwork:
    data = save_network(network)
    return load_transformation_network(data, from_dim=DIM, side_information_dim=DIM, to_dim=DIM, precision=precision)


def inputs(count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    embedding, side = (generator.standard_normal((count, DIM)).astype(np.float16) for _ in range(2))
    return embedding, side


@pytest.mark.parametrize("seed", range(5))
def test_in_bfloat16_every_row_points_where_it_does_in_float32(seed: int) -> None:
    network = transformation(DIM, DIM, DIM, seed, inner_dim=2048)

    exact, short = (l2_normalize(load(network, format_)(*inputs(1_000))) for format_ in FORMATS)

    cosines = (exact * short).sum(axis=1)
    assert cosines.min() >= 0.9999
    assert not np.array_equal(exact, short)  # it did run in another format


def test_retrieval_is_the_same_in_bfloat16() -> None:
    network = transformation(DIM, DIM, DIM, seed=0, inner_dim=2048)
    embedding, side = inputs(2_000)
    side = (0.5 * side).astype(np.float16)
    centres = np.random.default_rng(1).standard_normal((50, DIM))
    labels = np.arange(len(embedding)) % len(centres)
    embedding = (0.7 * embedding + centres[labels]).astype(np.float16)

    before, after = (
        retrieval_metrics(vectors[:1000], labels[:1000], vectors[1000:], labels[1000:])
        for vectors in (load(network, format_)(embedding, side) for format_ in FORMATS)
    )

    assert 0.2 < before.cmc1 < 0.99  # neither easy nor lost, so that a difference would show
    assert after.cmc1 == pytest.approx(before.cmc1, abs=2e-3)  # two queries of a thousand
    assert after.map == pytest.approx(before.map, abs=1e-3)


def test_a_network_that_bfloat16_would_bend_runs_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    network = transformation(DIM, DIM, DIM, seed=0)
    last = network.members[0].mixer[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        # Outputs that are a small difference of large numbers.
        last.weight.copy_(last.weight[:1] * 1_000 + last.weight)
        last.bias.sub_(network(torch.zeros(1, DIM), torch.zeros(1, DIM))[0])

    with caplog.at_level(logging.WARNING):
        exact, short = (load(network, format_)(*inputs(100)) for format_ in FORMATS)

    assert "too inexact in bfloat16" in caplog.text
    np.testing.assert_array_equal(exact, short)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(100.0, 300.0, "bfloat16"), (100.0, 110.0, "float32"), (100.0, 50.0, "float32")]
)
def test_a_shorter_format_must_be_clearly_faster(float32: float, bfloat16: float, chosen: str) -> None:
    assert faster_precision({"float32": float32, "bfloat16": bfloat16}) == chosen


def test_the_trial_says_what_it_measured(caplog: pytest.LogCaptureFixture) -> None:
    fastest_precision.cache_clear()

    with caplog.at_level(logging.INFO):
        chosen = fastest_precision("cpu")

    assert f"h and g run in {chosen} on cpu" in caplog.text
    assert "bfloat16" in caplog.text
