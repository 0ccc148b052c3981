"""A training that stops and goes on from its checkpoint gives the weights of one that never stopped."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.training.checkpoints import load_checkpoint, part_of, position_of
from models.training.features import PairedFeatures
from models.training.loop import EpochProgress, Paused
from models.training.transformation import TransformationTraining, train_transformation
from models.transformation import Transformation

CONFIG = TransformationTraining(epochs=6, warm_up_epochs=2, batch=16, inner_dim=8)


class Stopped(Exception):
    pass


def stop_after(epochs: int) -> EpochProgress:
    def progress(done: int, total: int, losses: Sequence[float]) -> None:
        assert len(losses) == done

        if done == epochs:
            raise Stopped

    return progress


def pause_after(steps: int) -> Callable[[], bool]:
    asked = itertools.count(1)
    return lambda: next(asked) == steps


def paired(seed: int = 0, rows: int = 50) -> PairedFeatures:
    generator = torch.Generator().manual_seed(seed)
    embedding, side, target = (torch.randn(rows, dim, generator=generator) for dim in (5, 4, 3))
    return PairedFeatures(embedding, side, target, None)


def by_class() -> PairedFeatures:
    """Rows in ten classes, apart from each other."""
    labels = torch.arange(600) % 10
    pairs = paired(rows=600)
    return replace(pairs, target=2 * torch.eye(10)[labels, :3] + 0.1 * pairs.target, labels=labels)


def stop_and_go_on(path: Path, *stops: int, config: TransformationTraining = CONFIG) -> Transformation:
    for epochs in stops:
        with pytest.raises(Stopped):
            train_transformation(paired(), CONFIG, stop_after(epochs), path)
        stored = load_checkpoint(path)
        assert stored is not None
        assert stored["epoch"] == epochs
    return train_transformation(paired(), config, checkpoint=path).network


def same_weights(first: Transformation, second: Transformation) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("stops", [(1,), (3,), (5,), (1, 2, 4), (6,)])
def test_going_on_gives_the_weights_of_one_that_never_stopped(tmp_path: Path, stops: tuple[int, ...]) -> None:
    network = stop_and_go_on(tmp_path / "h.checkpoint", *stops)

    assert same_weights(network, train_transformation(paired(), CONFIG).network)
    assert not network.training
    assert [path.name for path in tmp_path.iterdir()] == ["h.checkpoint"]


@pytest.mark.parametrize("stops", [(1,), (4,), (2, 6)])
def test_a_training_by_class_goes_on_with_its_probe(tmp_path: Path, stops: tuple[int, ...]) -> None:
    pairs, config, path = by_class(), replace(CONFIG, task="class", batch=64), tmp_path / "h.checkpoint"
    for epochs in stops:
        with pytest.raises(Stopped):
            train_transformation(pairs, config, stop_after(epochs), path)

    gone_on = train_transformation(pairs, config, checkpoint=path)

    uninterrupted = train_transformation(pairs, config, checkpoint=tmp_path / "other.checkpoint")
    probes = [part_of(stored, "probe") for stored in map(load_checkpoint, (path, path.with_stem("other"))) if stored]
    assert len(probes) == 2
    assert probes[0].keys() == probes[1].keys() != set()
    assert all(torch.equal(value, probes[1][name]) for name, value in probes[0].items())
    assert gone_on.choices == uninterrupted.choices
    assert gone_on.choices["classes_left_out"] == 2
    assert same_weights(gone_on.network, uninterrupted.network)


@pytest.mark.parametrize("pauses", [(1,), (2, 3), (3, 1, 7), (4,), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("views", [1, 2])
def test_going_on_inside_an_epoch_gives_the_same_weights(tmp_path: Path, pauses: tuple[int, ...], views: int) -> None:
    pairs = replace(paired(rows=100), views=views)
    path = tmp_path / "h.checkpoint"
    for steps in pauses:
        with pytest.raises(Paused):
            train_transformation(pairs, CONFIG, checkpoint=path, pause=pause_after(steps))

    found: list[Sequence[float]] = []
    network = train_transformation(pairs, CONFIG, lambda _done, _total, losses: found.append([*losses]), path).network

    expected: list[Sequence[float]] = []
    unpaused = train_transformation(pairs, CONFIG, lambda _done, _total, losses: expected.append([*losses])).network
    assert same_weights(network, unpaused)
    assert found[-1] == pytest.approx(expected[-1])


def test_a_training_by_class_goes_on_inside_its_probes_part_of_an_epoch(tmp_path: Path) -> None:
    pairs, config, path = by_class(), replace(CONFIG, task="class", batch=64), tmp_path / "h.checkpoint"
    for steps in (11, 2):
        with pytest.raises(Paused):
            train_transformation(pairs, config, checkpoint=path, pause=pause_after(steps))
    stored = load_checkpoint(path)

    gone_on = train_transformation(pairs, config, checkpoint=path)

    assert stored is not None
    assert position_of(stored) == (0, 13)
    assert same_weights(gone_on.network, train_transformation(pairs, config).network)


def test_a_training_without_a_checkpoint_does_not_pause() -> None:
    assert train_transformation(paired(), CONFIG, pause=lambda: True).network is not None


def test_a_checkpoint_of_another_configuration_is_not_gone_on_from(tmp_path: Path) -> None:
    other = replace(CONFIG, seed=1)

    network = stop_and_go_on(tmp_path / "h.checkpoint", 3, config=other)

    assert same_weights(network, train_transformation(paired(), other).network)


@pytest.mark.parametrize("kept_bytes", [0, 100, 2000, -100])
def test_a_damaged_checkpoint_is_started_over_and_said_so(
    tmp_path: Path, kept_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "h.checkpoint"
    with pytest.raises(Stopped):
        train_transformation(paired(), CONFIG, stop_after(3), path)
    path.write_bytes(path.read_bytes()[:kept_bytes])

    network = train_transformation(paired(), CONFIG, checkpoint=path).network

    assert f"The checkpoint {path} is damaged" in caplog.text
    assert same_weights(network, train_transformation(paired(), CONFIG).network)
