"""What the training of ψ adds to its network."""

import pytest
import torch

from models.side_information import Decoder


@pytest.mark.parametrize("size", [1, 7, 8, 12, 32, 33])
def test_a_decoder_gives_images_of_the_size(size: int) -> None:
    decoder = Decoder(6, size)

    assert decoder(torch.randn(2, 6)).shape == (2, 3, size, size)
