"""Networks, losses and normalising, each against a slow, obvious computation."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.artifacts import ArtifactError, load_encoder, save_network
from models.backbones import ENCODERS, Backbone, ConvEncoder, MobileNetV2, ResNet, SmallResNet
from models.losses import SmoothedSoftmax, nt_xent
from models.normalize import l2_normalize
from models.side_information import Decoder
from models.transformation import ConvBlock, Transformation, fold_batch_norm
from tests.networks import transformation
from tests.unit.models.artifact_files import rewritten_header


def test_a_transformation_has_the_layers_of_the_paper() -> None:
    network = Transformation(128, 128, 128)

    shapes = [tuple(module.weight.shape) for module in network.modules() if isinstance(module, nn.Linear)]
    biases = [module.bias is not None for module in network.modules() if isinstance(module, nn.Linear)]

    branch = [(256, 128), (256, 256)]
    assert shapes == [*branch, *branch, (2048, 512), (2048, 2048), (128, 2048)]
    assert biases == [False] * 6 + [True]
    # docs/scale.md, Worked out: 5.7 million multiplications in all; 196,608 of them are the branches'.
    assert sum(rows * columns for rows, columns in shapes[:4]) == 196_608
    assert sum(rows * columns for rows, columns in shapes) == 5_701_632


@pytest.mark.parametrize(("from_dim", "side_dim", "to_dim"), [(6, 4, 10), (4, 4, 4), (1, 3, 2)])
def test_a_transformation_computes_what_its_layers_say(from_dim: int, side_dim: int, to_dim: int) -> None:
    network = transformation(from_dim, side_dim, to_dim, seed=1)
    embedding, side_information = torch.randn(5, from_dim), torch.randn(5, side_dim)

    def block(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
        assert isinstance(layer, ConvBlock)
        linear, norm = layer[0], layer[1]
        assert isinstance(linear, nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scaled = (values @ linear.weight.T - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
        return (scaled * norm.weight + norm.bias).clamp(min=0)

    old = block(network.old_branch[1], block(network.old_branch[0], embedding))
    side = block(network.side_branch[1], block(network.side_branch[0], side_information))
    mixed = block(network.mixer[1], block(network.mixer[0], torch.cat([old, side], dim=1)))
    last = network.mixer[2]
    assert isinstance(last, nn.Linear)

    assert torch.allclose(network(embedding, side_information), mixed @ last.weight.T + last.bias, rtol=1e-4, atol=1e-5)


def test_without_side_information_both_branches_get_the_embedding() -> None:
    network = transformation(6, None, 4, seed=2)
    twin = Transformation(6, 6, 4, inner_dim=16)
    twin.load_state_dict(network.state_dict())
    embedding = torch.randn(5, 6)

    assert torch.equal(network(embedding), twin.eval()(embedding, embedding))
    assert torch.equal(network(embedding, torch.randn(5, 3)), network(embedding))


@pytest.mark.parametrize("side_dim", [None, 5])
def test_folding_batch_norm_changes_no_output(side_dim: int | None) -> None:
    network = transformation(6, side_dim, 4, seed=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    before = copy.deepcopy(network.state_dict())
    inputs = (torch.randn(32, 6), None if side_dim is None else torch.randn(32, side_dim))

    folded = fold_batch_norm(network)

    assert not any(isinstance(module, nn.BatchNorm1d) for module in folded.modules())
    assert torch.allclose(folded(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "build",
    [
        partial(ConvEncoder, 4, 6),
        partial(ConvEncoder, 4, 6, last_relu=False),
        partial(SmallResNet, 4, 1, 6),
        partial(SmallResNet, 4, 2, 6),
        partial(SmallResNet, 4, 1, 6, 2),
        partial(ResNet, 18, 6),
        partial(ResNet, 50, 6),
        partial(MobileNetV2, 6),
    ],
)
def test_an_encoder_takes_any_size_and_is_rebuilt_from_its_configuration(build: Callable[[], Backbone]) -> None:
    encoder = build()
    assert ENCODERS[type(encoder).__name__] is type(encoder)
    assert encoder.embedding_dim == 6
    rebuilt = type(encoder)(**encoder.config())
    rebuilt.load_state_dict(encoder.state_dict())
    encoder.eval()
    rebuilt.eval()

    for batch, height, width in ((1, 5, 9), (2, 28, 28), (3, 32, 32)):
        images = torch.randn(batch, 3, height, width)
        assert encoder(images).shape == (batch, 6)
        assert torch.equal(encoder(images), rebuilt(images))


@pytest.mark.parametrize(
    ("build", "millions", "billions"),
    [
        # 11.69, 25.56 and 3.50 million, less the classifier's; of 128 dimensions the last block is smaller
        (partial(ResNet, 18, 512), 11.18, 1.81),
        (partial(ResNet, 50, 2048), 23.51, 4.09),
        (partial(ResNet, 50, 128), 22.78, 4.05),
        (partial(MobileNetV2, 1280), 2.22, 0.30),
    ],
)
def test_the_large_encoders_have_the_published_sizes(
    build: Callable[[], Backbone], millions: float, billions: float
) -> None:
    with torch.device("meta"):
        encoder = build()
        multiplications = 0

        def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            nonlocal multiplications
            assert isinstance(module, nn.Conv2d)
            multiplications += module.weight.numel() * output.shape[2] * output.shape[3]

        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        output = encoder(torch.empty(1, 3, 224, 224))

    assert output.shape == (1, encoder.embedding_dim)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert multiplications / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize(
    ("network", "config", "sentence"),
    [
        ("ResNet", {"depth": 50, "embedding_dim": 6}, "more weights than the file holds"),
        ("ResNet", {"depth": 50, "embedding_dim": 65_536}, "more weights than the file holds"),
        ("ResNet", {"depth": 50, "embedding_dim": 10**9}, "from 1 to 65536"),
        ("ResNet", {"depth": 10_000, "embedding_dim": 6}, "depth of 18 or 50"),
        ("ResNet", {"depth": None, "embedding_dim": 6}, "depth of 18 or 50"),
        ("MobileNetV2", {"embedding_dim": 6}, "more weights than the file holds"),
        ("MobileNetV2", {"embedding_dim": None}, "does not fit MobileNetV2"),
        ("MobileNetV2", {"embedding_dim": 6, "width": 2}, "does not fit MobileNetV2"),
    ],
)
def test_a_file_that_claims_to_be_a_large_encoder_is_refused(
    network: str, config: dict[str, Any], sentence: str
) -> None:
    data = rewritten_header(save_network(ConvEncoder(4, 6)), {"network": network, "config": config})

    with pytest.raises(ArtifactError, match=sentence):
        load_encoder(data, output_dim=6, input_size=8)


def test_a_resnet_has_18_or_50_layers() -> None:
    with pytest.raises(ValueError, match="18 or 50, not 34"):
        ResNet(34, 8)


def test_embeddings_end_in_a_relu_unless_told() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)

    for encoder in (SmallResNet(4, 1, 16), ResNet(18, 16), ResNet(50, 16), MobileNetV2(16)):
        assert (encoder(images) >= 0).all()

    assert (ConvEncoder(4, 16)(images) >= 0).all()
    assert (ConvEncoder(4, 16, last_relu=False)(images) < 0).any()


@pytest.mark.parametrize("size", [1, 7, 8, 12, 32, 33])
def test_a_decoder_gives_images_of_the_size(size: int) -> None:
    decoder = Decoder(6, size)

    assert decoder(torch.randn(2, 6)).shape == (2, 3, size, size)


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


def test_normalizing_gives_unit_norms_and_leaves_zeros() -> None:
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [-1e-20, 0.0], [1e18, 1e18]], np.float32)

    normalized = l2_normalize(vectors)

    assert normalized.dtype == np.float32
    assert np.allclose(normalized, [[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0], [0.5**0.5, 0.5**0.5]], atol=1e-6)
    assert l2_normalize(vectors[:0]).shape == (0, 2)


def test_importing_runs_no_multi_threaded_operation() -> None:
    # A child forked from a parent that has run one hangs at its own first (libgomp).
    program = (
        "import os, sys\n"
        "import models.artifacts, models.images, models.metrics, models.losses, models.side_information\n"
        "import models.training.encoder, models.training.side_information, models.training.transformation\n"
        "import torch\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    torch.randn(800, 800) @ torch.randn(800, 800)\n"
        "    os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )

    finished = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60, check=False)

    assert finished.returncode == 7
