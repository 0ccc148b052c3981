"""Encoders: sizes, configurations, and what makes none."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from models.artifacts import ArtifactError, load_encoder, save_network
from models.backbones import ENCODERS, Backbone, ConvEncoder, MobileNetV2, ResNet, SmallResNet
from tests.unit.models.artifact_files import rewritten_header


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
