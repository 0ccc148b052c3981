"""Trainings that are stopped and go on, and what they refuse to go on from."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.artifacts import load_encoder
from models.backbones import ConvEncoder
from models.training.checkpoints import (
    CHECKPOINT,
    NETWORK,
    RECORD,
    DamagedCheckpoint,
    OtherTraining,
    TrainingState,
    load_checkpoint,
    rebuild_network,
    save_checkpoint,
)
from models.training.encoder import EncoderTraining, train_encoder
from models.training.fitting import Run
from models.training.side_information import (
    AutoencoderTraining,
    SideInformationTraining,
    SimclrTraining,
    train_side_information,
)
from tests.unit.models.training.toy_images import cut_at, toy_images

IMAGES = toy_images(66, seed=1)
CONFIGS: list[SideInformationTraining] = [
    EncoderTraining(epochs=4, batch=32, precision="bfloat16"),
    EncoderTraining(epochs=4, batch=32, mixup=0.5, loss="arcface", precision="float32"),
    SimclrTraining(epochs=4, batch=32, precision="float32"),
    AutoencoderTraining(epochs=4, batch=32, precision="float32"),
]


def small_encoder() -> ConvEncoder:
    return ConvEncoder(4, 6)


def weights(folder: Path) -> dict[str, Tensor]:
    checkpoint = load_checkpoint(folder / CHECKPOINT)
    assert checkpoint is not None
    assert checkpoint["epoch"] == 4
    found: dict[str, Tensor] = checkpoint["learned"]
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_an_interrupted_training_ends_in_the_same_bits(config: SideInformationTraining, tmp_path: Path) -> None:
    train_side_information(small_encoder, IMAGES, config, Run(tmp_path / "through"))

    for images_seen in (1, 66 + 40, 3 * 66):  # in the first epoch, in the second, and at the third's very end
        with pytest.raises(KeyboardInterrupt):
            train_side_information(small_encoder, IMAGES, config, Run(tmp_path / "cut", progress=cut_at(images_seen)))
        torch.rand(7)  # what another program does with the generator
    trained = train_side_information(small_encoder, IMAGES, config, Run(tmp_path / "cut"))

    through, cut = weights(tmp_path / "through"), weights(tmp_path / "cut")
    assert through.keys() == cut.keys()
    assert all(torch.equal(through[name], cut[name]) for name in through)
    assert trained.record["final_loss"] == json.loads((tmp_path / "through" / RECORD).read_text())["final_loss"]


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    config = EncoderTraining(epochs=2, precision="float32")
    first = train_encoder(small_encoder, IMAGES, config, Run(tmp_path))

    again = train_encoder(small_encoder, IMAGES, config, Run(tmp_path, progress=cut_at(0)))

    assert again.record == first.record
    pairs = zip(first.network.state_dict().values(), again.network.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_an_interrupted_training_keeps_the_precision_that_it_had_chosen(tmp_path: Path) -> None:
    config = EncoderTraining(epochs=1, precision="float32")
    train_encoder(small_encoder, IMAGES, config, Run(tmp_path))

    trained = train_encoder(small_encoder, IMAGES, replace(config, precision=None), Run(tmp_path))

    assert trained.record["training"]["precision"] == "float32"


def test_the_folder_holds_a_network_to_register_and_a_record(tmp_path: Path) -> None:
    config = EncoderTraining(epochs=1, seed=3, precision="float32")

    trained = train_encoder(small_encoder, IMAGES, config, Run(tmp_path))

    images = torch.randn(5, 3, 12, 12)
    with torch.inference_mode():
        expected = trained.network(images)
    exported = load_encoder((tmp_path / NETWORK).read_bytes(), output_dim=6, input_size=12)(images.numpy())
    checkpoint = load_checkpoint(tmp_path / CHECKPOINT)
    assert checkpoint is not None
    with torch.inference_mode():
        rebuilt = rebuild_network(checkpoint)(images)
    assert torch.allclose(torch.from_numpy(exported), expected, atol=1e-6)
    assert torch.allclose(rebuilt, expected, atol=1e-6)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record == json.loads(json.dumps(trained.record))
    assert record["training"]["seed"] == 3
    assert record["images"]["digest"] == IMAGES.digest
    assert record["torch"] == torch.__version__
    assert record["final_loss"] > 0
    assert record["seconds"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CHECKPOINT, NETWORK, RECORD])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"config": EncoderTraining(epochs=3)}, "training.epochs is 2 there and 3 here"),
        ({"config": EncoderTraining(epochs=2, seed=1)}, "training.seed"),
        ({"config": AutoencoderTraining(epochs=2)}, "training.kind"),
        ({"build": lambda: ConvEncoder(8, 6)}, "network.config.width is 4 there and 8 here"),
        ({"images": toy_images(66, seed=2)}, "images.digest"),
        ({"images": IMAGES.of_classes([1, 0, 2])}, "images.classes"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    config = EncoderTraining(epochs=2, precision="float32")
    train_encoder(small_encoder, IMAGES, config, Run(tmp_path))
    before = (tmp_path / CHECKPOINT).read_bytes()
    given = {"build": small_encoder, "images": IMAGES, "config": config, **change}

    with pytest.raises(OtherTraining, match=sentence):
        train_side_information(
            given["build"], given["images"], replace(given["config"], precision="float32"), Run(tmp_path)
        )

    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_checkpoint_that_could_not_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, {"seed": 3}, 1, small_state())
    before = path.read_bytes()

    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"unwritable": lambda: None}, 2, small_state())

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_checkpoint_holds_all_that_a_training_goes_on_with(tmp_path: Path) -> None:
    path = tmp_path / "new" / CHECKPOINT
    state, other = small_state(seed=1), small_state(seed=2)

    save_checkpoint(path, {"seed": 3, "classes": ["a", "b"]}, 4, state, loss=0.5)
    stored = load_checkpoint(path)
    assert stored is not None
    other.restore(stored)

    assert (stored["configuration"], stored["epoch"]) == ({"seed": 3, "classes": ["a", "b"]}, 4)
    assert stored["loss"] == 0.5
    assert torch.equal(other.learned.state_dict()["weight"], state.learned.state_dict()["weight"])
    assert torch.equal(torch.rand(3, generator=other.generator), torch.rand(3, generator=state.generator))


def test_the_same_state_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save_checkpoint(tmp_path / name, {}, 1, small_state())

    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def small_state(seed: int = 0) -> TrainingState:
    torch.manual_seed(seed)
    learned = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(learned.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    return TrainingState(learned, optimizer, schedule, torch.Generator().manual_seed(seed))


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"epoch": Attack()}, tmp_path / CHECKPOINT)

    with pytest.raises(DamagedCheckpoint, match="Weights only load failed"):
        load_checkpoint(tmp_path / CHECKPOINT)

    assert not (tmp_path / "ran").exists()
