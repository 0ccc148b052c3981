"""One command per network: `python -m models.training encoder` trains φ, `... side-information` trains ψ.

    python -m models.training encoder photos --out old --classes 0:50 --epochs 30
    python -m models.training side-information photos --out old-side --classes 0:50 --kind simclr
    python -m models.training encoder photos --out new --architecture ResNet --option depth=50 --size 224

`photos` is a folder of class folders, or Parquet with the columns `image` and `label`. An interrupted command goes on
where its folder's last checkpoint was when it is given again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from models.backbones import ENCODERS, Backbone
from models.image_sets import NoImages, find_images
from models.precision import Precision
from models.preprocessing import Preprocessing
from models.training.checkpoints import NETWORK, OtherTraining
from models.training.data import TrainingImages, read_images
from models.training.encoder import ClassifierLoss, EncoderTraining, NotCompatible, train_encoder
from models.training.fitting import AnyTraining, Diverged, Run, Trained
from models.training.side_information import SIDE_INFORMATION, SideInformationKind, train_side_information

_DEFAULT_OPTIONS: dict[str, dict[str, int]] = {
    "ConvEncoder": {"width": 32},
    "SmallResNet": {"width": 32, "blocks": 1},
    "ResNet": {"depth": 18},
    "MobileNetV2": {},
}
_CACHE = Path.home() / ".cache" / "gallery-upgrade" / "images"

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Place = Annotated[Path, typer.Argument(help="A folder of class folders, or Parquet files (image, label).")]
Out = Annotated[Path, typer.Option(help="The training's folder: its checkpoint, network and record.")]
Architecture = Annotated[str, typer.Option(help=f"One of {', '.join(ENCODERS)}.")]
Options = Annotated[list[str] | None, typer.Option("--option", help="The architecture's, such as width=32.")]
EmbeddingDim = Annotated[int, typer.Option(help="Dimensions of the output.")]
Size = Annotated[int, typer.Option(help="Edge of the images in pixels.")]
Resize = Annotated[int | None, typer.Option(help="Resize the shorter edge to this, and cut out the centre.")]
Mean = Annotated[tuple[float, float, float], typer.Option(help="Of the channels, in 0 to 1.")]
Std = Annotated[tuple[float, float, float], typer.Option(help="Of the channels, in 0 to 1.")]
Classes = Annotated[str | None, typer.Option(help="Indices such as 0:50 or 0:6,10:54,99; otherwise all.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Otherwise what suits small photographs.")]
Batch = Annotated[int | None, typer.Option(min=2, help="Images in a batch.")]
LearningRate = Annotated[float | None, typer.Option(min=0, help="At its highest.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of weights, order and views.")]
Flip = Annotated[bool, typer.Option(help="Whether a mirror image is the same thing.")]
InPrecision = Annotated[Precision | None, typer.Option(help="Of the convolutions; otherwise the faster.")]
Device = Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="Otherwise cuda where there is one.")]
Cache = Annotated[Path, typer.Option(help="Where decoded images are kept between trainings.")]


@app.command()
def encoder(
    place: Place,
    out: Out,
    architecture: Architecture = "SmallResNet",
    option: Options = None,
    embedding_dim: EmbeddingDim = 128,
    size: Size = 32,
    resize: Resize = None,
    mean: Mean = (0.5, 0.5, 0.5),
    std: Std = (0.5, 0.5, 0.5),
    classes: Classes = None,
    epochs: Epochs = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    flip: Flip = True,
    precision: InPrecision = None,
    device: Device = None,
    cache: Cache = _CACHE,
    loss: Annotated[ClassifierLoss, typer.Option(help="Of the classifier.")] = "softmax",
    mixup: Annotated[float, typer.Option(min=0, help="Mix images by Beta(m, m); 0 does not.")] = 0.0,
    compatible_with: Annotated[
        Path | None, typer.Option(help="The folder of an old encoder's training: backward-compatible training (BCT).")
    ] = None,
) -> None:
    """Train an encoder φ as a classifier."""
    with _refusals():
        config = EncoderTraining(flip=flip, loss=loss, mixup=mixup)
        config = _with(config, epochs=epochs, batch=batch, learning_rate=learning_rate, seed=seed, precision=precision)
        build = _builder(architecture, option or [], embedding_dim)
        images = _read(place, _preprocessing(size, resize, mean, std), classes, cache)
        with _shown(out, device, f"encoder, {architecture}") as run:
            trained = train_encoder(build, images, config, run, compatible_with)
        _say_done(trained, out)


@app.command()
def side_information(
    place: Place,
    out: Out,
    kind: Annotated[SideInformationKind, typer.Option(help="Which of the paper's kinds.")] = "simclr",
    architecture: Architecture = "ConvEncoder",
    option: Options = None,
    embedding_dim: EmbeddingDim = 128,
    size: Size = 32,
    resize: Resize = None,
    mean: Mean = (0.5, 0.5, 0.5),
    std: Std = (0.5, 0.5, 0.5),
    classes: Classes = None,
    epochs: Epochs = None,
    batch: Batch = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    flip: Flip = True,
    precision: InPrecision = None,
    device: Device = None,
    cache: Cache = _CACHE,
) -> None:
    """Train a side-information model ψ, of a kind of the paper's table 6.

    The alternate kinds are the old encoder trained again: give them its architecture, and a seed other than its own.
    """
    with _refusals():
        config = replace(SIDE_INFORMATION[kind], flip=flip)
        config = _with(config, epochs=epochs, batch=batch, learning_rate=learning_rate, seed=seed, precision=precision)
        build = _builder(architecture, option or [], embedding_dim)
        images = _read(place, _preprocessing(size, resize, mean, std), classes, cache)
        with _shown(out, device, f"{kind}, {architecture}") as run:
            trained = train_side_information(build, images, config, run)
        _say_done(trained, out)


class _Refused(ValueError):
    """An option's value makes no sense; the message says why."""


@contextmanager
def _refusals() -> Iterator[None]:
    """Show what was refused as a sentence, without a traceback."""
    try:
        yield
    except (_Refused, NoImages, NotCompatible, OtherTraining, Diverged, OSError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error


def _with(config: AnyTraining, **given: Any) -> AnyTraining:
    """Return the settings with those changed that were given."""
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def _preprocessing(
    size: int, resize: int | None, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Preprocessing:
    try:
        return Preprocessing(size, mean, std, resize, "none" if resize is None else "center")
    except ValueError as error:
        raise _Refused(str(error)) from error


def _builder(architecture: str, options: list[str], embedding_dim: int) -> Callable[[], Backbone]:
    if architecture not in ENCODERS:
        raise _Refused(f"--architecture is one of {', '.join(ENCODERS)}, not {architecture}.")
    values = dict(_DEFAULT_OPTIONS[architecture])
    for option in options:
        name, _, value = option.partition("=")
        if not (value.isascii() and value.isdecimal()):
            raise _Refused(f"--option takes a name and a whole number, such as width=32, not {option}.")
        values[name] = int(value)
    build = partial(ENCODERS[architecture], embedding_dim=embedding_dim, **values)
    try:
        with torch.device("meta"):
            build()
    except (TypeError, ValueError, RuntimeError) as error:
        raise _Refused(f"The options do not fit {architecture}: {error}") from error
    return build


def _read(place: Path, preprocessing: Preprocessing, classes: str | None, cache: Path) -> TrainingImages:
    with Progress(*_COLUMNS) as bars:
        bar = bars.add_task("read images", loss="")
        source = find_images(place)
        images = read_images(
            source, preprocessing, cache, lambda done, total: bars.update(bar, completed=done, total=total)
        )
        bars.update(bar, completed=len(source), total=len(source))
    return images if classes is None else images.of_classes(_indices(classes, len(images.classes)))


def _indices(classes: str, count: int) -> list[int]:
    """Return the indices that "0:6,10:54,99" means, among `count`."""
    chosen: list[int] = []
    for part in classes.split(","):
        first, colon, end = part.partition(":")
        try:
            chosen += range(int(first or 0), int(end or count)) if colon else [int(first)]
        except ValueError as error:
            raise _Refused(f"--classes takes indices such as 0:50 or 0:6,10:54,99, not {classes}.") from error
    if not chosen or min(chosen) < 0 or max(chosen) >= count or len(set(chosen)) < len(chosen):
        raise _Refused(f"--classes chooses each class once, from 0 to {count - 1}; {classes} does not.")
    return chosen


class _Speed(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    _Speed(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[loss]}"),
)


@contextmanager
def _shown(out: Path, device: str | None, name: str) -> Iterator[Run]:
    """Give a run whose progress is a bar."""
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise _Refused("There is no CUDA device here.")
    with Progress(*_COLUMNS) as bars:
        bar = bars.add_task(name, loss="")

        def show(done: int, total: int, loss: float) -> None:
            bars.update(bar, completed=done, total=total, loss=f"loss {loss:.3f}")

        yield Run(out, device or ("cuda" if has_cuda else "cpu"), show)


def _say_done(trained: Trained, out: Path) -> None:
    record = trained.record
    print(f"{out / NETWORK}: loss {record['final_loss']:.4f} after {record['seconds']:.0f} s of training")


if __name__ == "__main__":
    app()
