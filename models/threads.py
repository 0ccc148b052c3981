"""How many threads a small run of a network takes.

OpenMP gives each thread that runs a network a team of its own. Once all teams together have more threads than the
machine has cores, their members sleep at the end of every step instead of waiting for the next one (libgomp's
`GOMP_SPINCOUNT`), and to wake them takes longer than a small network does in all.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from models.artifacts import Encoder, Vectors

_WORTH_SHARING_SECONDS = 0.004
_TRIALS = 3


def sharing_long_runs(encoder: Encoder, image_shape: tuple[int, int, int]) -> Encoder:
    """Return the encoder, (B, depth, H, W) float32 to (B, D), such that a batch that one thread is done with in 4 ms is
    left to the thread that asks. A trial finds out what an image takes; networks of ONNX Runtime are not affected."""
    teams = ThreadpoolController().select(user_api="openmp")
    image = np.zeros((1, *image_shape), np.float32)
    with teams.limit(limits=1):  # in this thread alone
        alone = _WORTH_SHARING_SECONDS / min(_seconds(encoder, image) for _ in range(_TRIALS))

    def encode(images: Vectors) -> Vectors:
        if len(images) > alone:
            return encoder(images)
        with teams.limit(limits=1):
            return encoder(images)

    return encode


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Let what this thread runs meanwhile have no team, so that it slows the teams of other threads little."""
    torch.get_num_threads()  # the first call in a thread sets how many its teams have; later ones leave it
    with ThreadpoolController().select(user_api="openmp").limit(limits=1):
        yield


def _seconds(encoder: Encoder, images: Vectors) -> float:
    began = time.perf_counter()
    encoder(images)
    return time.perf_counter() - began
