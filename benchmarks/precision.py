"""What a shorter number format in h costs in retrieval, on photographs.

    python -m benchmarks.precision ../shared/data/cifar100

Trains the demonstration's networks for a moment, transforms the test images' old embeddings by h in each format, and
compares. The folder has train.parquet and test.parquet, each with columns `image` and `label`.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.networks import forms_of
from benchmarks.setting import machine
from demo.data import load_images
from demo.training import PHOTOGRAPHS, embed, train_everything
from models.metrics import RetrievalMetrics, retrieval_metrics
from models.normalize import l2_normalize

_SEED = 0


def run(
    place: Path,
    train_images: Annotated[int, typer.Option(help="Of train.parquet.")] = 20_000,
    epochs: Annotated[int, typer.Option(help="Of every network.")] = 2,
) -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    recipe = replace(
        PHOTOGRAPHS,
        encoder=replace(PHOTOGRAPHS.encoder, epochs=epochs),
        simclr=replace(PHOTOGRAPHS.simclr, epochs=1),
        transformation=replace(PHOTOGRAPHS.transformation, epochs=2 * epochs),
    )
    train, test = (load_images(place / f"{name}.parquet") for name in ("train", "test"))
    chosen = np.random.default_rng(_SEED).permutation(len(train))[:train_images]
    networks = train_everything(train.take(chosen), recipe, lambda _name: lambda _done, _total: None)

    inputs = [
        torch.from_numpy(embed(network, test, recipe).astype(np.float16)).float()
        for network in (networks.old_encoder, networks.old_side_information)
    ]
    new = embed(networks.new_encoder, test, recipe)

    columns = ("form of h", "CMC@1", "CMC@5", "mAP", "cosine to float32: least", "mean")
    table = Table(*columns, title=f"h/h on {len(test):,} test images")
    exact = None
    for name, form in forms_of(networks.h, "cpu").items():
        with torch.inference_mode():
            found = form(*inputs).float().numpy()
        exact = found if exact is None else exact
        metrics = retrieval_metrics(found, test.labels, found, test.labels, self_match=True)
        cosines = (l2_normalize(exact) * l2_normalize(found)).sum(axis=1)
        table.add_row(name, *_percent(metrics), f"{cosines.min():.6f}", f"{cosines.mean():.6f}")
    table.add_row("new/new", *_percent(retrieval_metrics(new, test.labels, new, test.labels, self_match=True)), "", "")
    console = Console()
    console.print(table)
    console.print(f"{machine()}; {train_images:,} training images, {epochs} epochs")


def _percent(metrics: RetrievalMetrics) -> list[str]:
    return [f"{100 * share:.2f}" for share in (metrics.cmc1, metrics.cmc5, metrics.map)]


if __name__ == "__main__":
    typer.run(run)
