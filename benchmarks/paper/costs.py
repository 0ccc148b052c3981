"""What the networks of the tables cost: seconds, multiply-adds and bytes."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.paper.networks import NETWORKS, read, record, trained
from benchmarks.paper.transformations import VARIANTS, Features, Spec, load, seconds_of
from models.training.fitting import embed_images


def costs(features: Features, specs: Sequence[Spec]) -> str:
    """Seconds, multiply-adds and bytes; `specs` are all h and g that the tables need."""
    lines = "| network | million multiply-adds per image | trained in seconds | final loss |\n|---|---|---|---|\n"
    for name in NETWORKS:
        found, size = record(features.folder, name), NETWORKS[name].size
        macs = _multiply_adds(trained(features.place, features.folder, name), torch.zeros(1, 3, size, size))
        lines += f"| {name} | {macs / 1e6:.1f} | {found['seconds']:.0f} | {found['final_loss']:.2f} |\n"

    for variant in ("paper", "default", "full size"):
        spec = Spec("old", "simclr", "new", variant)
        network, config = load(features, spec), VARIANTS[variant].config
        macs = _multiply_adds(network, torch.zeros(1, 128), torch.zeros(1, 128))
        what = f"h, {variant}: inner {config.inner_dim}, {config.epochs} epochs"
        lines += f"| {what} | {macs / 1e6:.2f} | {seconds_of(features, spec):.0f} | |\n"

    minutes = [
        sum(seconds) / 60
        for seconds in (
            [record(features.folder, name)["seconds"] for name in NETWORKS],
            [seconds_of(features, spec) for spec in specs],
        )
    ]

    spec = Spec("old", "simclr", "new", "full size")
    cached = seconds_of(features, spec) / VARIANTS[spec.variant].config.epochs
    encoding = sum(_seconds_to_encode(features, name) for name in ("old", "simclr", "new"))
    return lines + (
        f"\nTrainings ran with one thread each, several at a time: these networks took {minutes[0]:.0f} minutes,"
        f" {len(specs)} h and g {minutes[1]:.0f}, one after the other. An item's embedding and ψ take 256 bytes"
        f" each as float16. An epoch of the paper's h on cached features takes {cached:.1f} s. Encoding its 50,000"
        f" images by φ_old, ψ and φ_new takes {encoding:.0f} s with one thread, here once per view. The released"
        f" code does it in every epoch: {1 + encoding / cached:.0f} times the work; more with larger backbones.\n"
    )


def _seconds_to_encode(features: Features, name: str) -> float:
    """Measure a part of the training images, and scale."""
    network, images = trained(features.place, features.folder, name), read(features.place, "train", features.folder)
    chosen = replace(images, rows=images.rows[::25], labels=images.labels[::25])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    embed_images(network, chosen)
    began = time.perf_counter()
    embed_images(network, chosen)
    seconds = time.perf_counter() - began
    torch.set_num_threads(threads)
    return seconds * len(images) / len(chosen)


def _multiply_adds(network: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Count those of convolutions and linear layers for one image."""
    counted: list[int] = []

    def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        places = output[0, 0].numel() if output.dim() == 4 else 1
        counted.append(weight.numel() * places)

    hooks = [
        layer.register_forward_hook(count)
        for layer in network.modules()
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    with torch.inference_mode():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(counted)
