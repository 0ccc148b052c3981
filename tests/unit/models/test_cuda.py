"""h and g on an NVIDIA GPU: skipped where there is none."""

from functools import partial

import numpy as np
import pytest
import torch

from models.artifacts import load_encoder, load_transformation_network, save_network
from models.normalize import l2_normalize
from models.precision import PRECISIONS, Precision, fastest_precision
from tests.networks import SIZE, encoder_bytes, transformation

DIM = 128
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_h_points_where_it_does_on_the_cpu(precision: Precision) -> None:
    data = save_network(transformation(DIM, DIM, DIM, seed=0, inner_dim=2048))
    generator = np.random.default_rng(0)
    embedding, side = (generator.standard_normal((5_000, DIM)).astype(np.float16) for _ in range(2))
    load = partial(load_transformation_network, data, from_dim=DIM, side_information_dim=DIM, to_dim=DIM)

    expected, found = load()(embedding, side), load(device="cuda", precision=precision)(embedding, side)

    assert (l2_normalize(expected) * l2_normalize(found)).sum(axis=1).min() >= 0.9999


def test_an_encoder_gives_what_it_gives_on_the_cpu() -> None:
    data = encoder_bytes(DIM, seed=1)
    images = np.random.default_rng(0).standard_normal((64, 3, SIZE, SIZE), np.float32)

    cpu, gpu = (load_encoder(data, output_dim=DIM, input_size=SIZE, device=device) for device in ("cpu", "cuda"))

    np.testing.assert_allclose(gpu(images), cpu(images), atol=1e-2, rtol=1e-2)


def test_the_trial_finds_a_precision_for_the_gpu() -> None:
    assert fastest_precision("cuda") in PRECISIONS
