"""What trainings of φ and ψ share: the loop and what a network is given."""

import numpy as np
import pytest
import torch
from PIL import Image

from models.preprocessing import preprocess_batch
from models.training.data import TrainingImages
from models.training.encoder import EncoderTraining, train_encoder
from models.training.fitting import Diverged, embed_images
from tests.unit.models.training.toy_images import PREPROCESSING, noise, small_encoder, toy_images


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    config = EncoderTraining(epochs=30, learning_rate=1e30, warm_up_epochs=0, batch=16, precision="float32")

    with pytest.raises(Diverged, match="epoch 1 the loss became"):
        train_encoder(small_encoder, toy_images(64, seed=1), config)


def test_embedding_gives_what_the_service_would_compute() -> None:
    network = small_encoder().eval()
    image = Image.fromarray(noise(1)[0].permute(1, 2, 0).numpy())
    images = TrainingImages(
        torch.from_numpy(np.array(image)).permute(2, 0, 1)[None],
        torch.tensor([0]),
        torch.tensor([0]),
        ["one"],
        PREPROCESSING,
        "",
    )

    with torch.inference_mode():
        expected = network(torch.from_numpy(preprocess_batch([image], PREPROCESSING)))

    assert torch.allclose(embed_images(network, images), expected, atol=1e-5)
