"""`python -m models.training`: what its options do, and what happens when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from models.artifacts import load_encoder, read_config
from models.training.__main__ import app
from models.training.checkpoints import CHECKPOINT, NETWORK, RECORD, load_checkpoint

SMALL = ["--size", "8", "--embedding-dim", "6", "--architecture", "ConvEncoder", "--option", "width=4"]
QUICK = [*SMALL, "--epochs", "2", "--batch", "16", "--precision", "float32", "--device", "cpu"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("apple", "bee", "car", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 256, (9, 11, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def command(photos: Path, name: str, out: str, *options: str) -> list[str]:
    folder = photos.parent
    return [name, str(photos), "--out", str(folder / out), "--cache", str(folder / "cache"), *QUICK, *options]


def run(*arguments: str) -> str:
    """Return what the command says, after it ended well."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def record(photos: Path, out: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((photos.parent / out / RECORD).read_text())
    return read


def test_an_encoder_and_its_side_information_are_trained_and_can_be_registered(photos: Path) -> None:
    said = run(*command(photos, "encoder", "old", "--classes", "0:2", "--seed", "7", "--no-flip", "--mixup", "0.5"))
    run(*command(photos, "side-information", "side", "--kind", "alternate", "--classes", "3,:1"))

    assert f"{NETWORK}: loss" in said
    for out in ("old", "side"):
        data = (photos.parent / out / NETWORK).read_bytes()
        assert read_config(data)["network"] == "ConvEncoder"
        assert load_encoder(data, output_dim=6, input_size=8)(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 6)
    old, side = record(photos, "old"), record(photos, "side")
    assert old["images"]["classes"] == ["apple", "bee"]
    assert old["images"]["count"] == 20
    assert side["images"]["classes"] == ["dog", "apple"]
    chosen = {"seed": 7, "flip": False, "mixup": 0.5, "epochs": 2, "batch": 16, "precision": "float32"}
    assert chosen.items() <= old["training"].items()
    assert side["training"]["seed"] == 1


def test_an_encoder_is_made_compatible_with_an_old_ones_folder(photos: Path) -> None:
    run(*command(photos, "encoder", "old", "--classes", "0:2"))
    run(*command(photos, "encoder", "new", "--loss", "arcface", "--compatible-with", str(photos.parent / "old")))

    assert record(photos, "old")["compatible_with"] is None
    assert len(record(photos, "new")["compatible_with"]) == 64


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--architecture", "VGG"], "--architecture is one of ConvEncoder"),
        (["--architecture", "ResNet", "--option", "depth=50"], "do not fit ResNet"),
        (["--option", "width"], "whole number"),
        (["--option", "colour=3"], "do not fit ConvEncoder"),
        (["--classes", "0:5"], "from 0 to 3"),
        (["--classes", "1,0:2"], "each class once"),
        (["--classes", "bee"], "indices such as"),
        (["--size", "5000"], "size must be"),
        (["--compatible-with", "nowhere"], "nowhere has no checkpoint"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_sentence(photos: Path, options: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, command(photos, "encoder", "out", *options), env={"COLUMNS": "400"})

    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert sentence in " ".join(result.output.split())
    assert not (photos.parent / "out").exists()


def test_another_training_is_not_continued_in_a_folder(photos: Path) -> None:
    run(*command(photos, "encoder", "old"))

    result = CliRunner().invoke(app, command(photos, "encoder", "old", "--seed", "1"), env={"COLUMNS": "400"})

    assert result.exit_code == 1
    assert "training.seed is 0 there and 1 here" in " ".join(result.output.split())


def test_a_killed_training_ends_in_the_same_bits_when_given_again(photos: Path) -> None:
    arguments = command(photos, "side-information", "killed", "--epochs", "20")
    checkpoint = photos.parent / "killed" / CHECKPOINT
    program = [sys.executable, "-W", "ignore", "-m", "models.training", *arguments]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, env=threads)
    ends = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    killed_after = load_checkpoint(checkpoint)
    assert killed_after is not None
    assert 1 <= killed_after["epoch"] < 20

    run(*arguments)
    run(*command(photos, "side-information", "through", "--epochs", "20"))

    assert (photos.parent / "killed" / NETWORK).read_bytes() == (photos.parent / "through" / NETWORK).read_bytes()
