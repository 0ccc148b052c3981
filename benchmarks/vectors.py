"""Vectors to search: embeddings of CIFAR-100 where `make paper` has trained a network, else random clusters."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.paper.transformations import Features
from benchmarks.setting import Vectors
from models.training.checkpoints import RECORD
from service.index.protocol import Ids

DIM = 128
_NETWORK = "new"  # of benchmarks.paper
_CLUSTERS = 1_000
_CLUSTERED_ROWS = 50_000
_SAMPLE = 1_000
_BLOCK_ROWS = 50_000
_SAMPLE_QUERIES = 1_000  # as many as the service keeps of a gallery


@dataclass(frozen=True)
class Corpus:
    """gallery: (N, D) float32 that float16 holds exactly, so that every engine has the same vectors; queries: (Q, D)
    float32, to be measured with, and sample_queries: (S, D) float32, by which widths are chosen, none of them in the
    gallery; source: what they are, in a sentence."""

    gallery: Vectors
    queries: Vectors
    sample_queries: Vectors
    source: str


def make_corpus(items: int, queries: int, paper: Path, images: Path) -> Corpus:
    """Return `items` vectors, as many queries as asked for, and 1,000 others.

    `paper` is the folder that benchmarks.paper keeps its networks in, `images` the one it read.
    """
    generator = np.random.default_rng(0)
    if (paper / _NETWORK / RECORD).exists() and images.exists():
        features = Features(images, paper)
        rows, held_out = np.array(features.train(_NETWORK)[0]), features.test(_NETWORK)
        what = "Embeddings of CIFAR-100's training images by a trained SmallResNet; queries: of its test images"
    else:
        rows, held_out = _clusters(generator, _CLUSTERED_ROWS), _clusters(generator, queries + _SAMPLE_QUERIES)
        what = f"Random vectors around {_CLUSTERS:,} random centres (no network of `make paper` was found)"
    rows = rows[generator.permutation(len(rows))]
    gallery, noise = _repeated(rows, items, generator)
    if len(gallery) > len(rows):
        what += (
            f". The {len(rows):,} are repeated up to {items:,}, the copies with Gaussian noise of length {noise:.2f},"
            " the median distance between a row and its nearest"
        )
    held_out = held_out[generator.permutation(len(held_out))]
    return Corpus(gallery, held_out[:-_SAMPLE_QUERIES][:queries], held_out[-_SAMPLE_QUERIES:], f"{what}.")


def exact_nearest(gallery: Vectors, queries: Vectors, k: int, block_rows: int = 50_000) -> Ids:
    """Return (Q, k) positions of the nearest rows by L2, nearest first, compared in float64."""
    asked = torch.from_numpy(queries).double()
    best = torch.empty(len(queries), 0, dtype=torch.float64)
    found = torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(gallery), block_rows):
        rows = torch.from_numpy(gallery[start : start + block_rows]).double()
        distances = rows.square().sum(dim=1) - 2 * asked @ rows.T  # less the query's own length, the same for all
        nearest = distances.topk(min(k, len(rows)), largest=False)
        best, found = torch.cat([best, nearest.values], dim=1), torch.cat([found, nearest.indices + start], dim=1)
        order = best.topk(min(k, best.shape[1]), largest=False)
        best, found = order.values, found.gather(1, order.indices)
    return found.numpy()


def recall(found: Ids, true: Ids) -> float:
    """Return the share of the (Q, k) true ids that are among the (Q, k) found ones, in any order."""
    return float((found[:, :, None] == true[:, None, :]).any(axis=1).mean())


def _clusters(generator: np.random.Generator, rows: int) -> Vectors:
    centres = np.random.default_rng(1).standard_normal((_CLUSTERS, DIM), np.float32)
    chosen = centres[generator.integers(_CLUSTERS, size=rows)]
    return chosen + 0.3 * generator.standard_normal((rows, DIM), np.float32)


def _repeated(rows: Vectors, items: int, generator: np.random.Generator) -> tuple[Vectors, float]:
    """Return (items, D) rows, all but the first of each with noise, and the noise's length."""
    sample = rows[:_SAMPLE]
    neighbors = rows[exact_nearest(rows, sample, 2)[:, 1]]
    noise = float(np.median(np.linalg.norm(neighbors - sample, axis=1)))
    gallery = np.resize(rows, (items, rows.shape[1]))
    for start in range(len(rows), items, _BLOCK_ROWS):
        part = gallery[start : start + _BLOCK_ROWS]
        part += generator.standard_normal(part.shape, np.float32) * (noise / np.sqrt(rows.shape[1]))
    return gallery.astype(np.float16).astype(np.float32), noise
