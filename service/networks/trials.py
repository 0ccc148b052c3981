"""What is asked of networks before they are registered: the trial of φ and ψ by what a spec declares, of h and g by
their versions' dimensions, and several files that are one network."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from models.artifact_kinds import ArtifactKind, artifact_kind, read_said
from models.artifacts import (
    AS_THE_FILE_SAYS,
    ArtifactError,
    NetworkForm,
    read_config,
    try_encoder,
    try_transformation_network,
)
from models.loaded_networks import InputDtype, Layout
from models.network_archives import pack_network
from models.preprocessing import BYTES, UNIT, Channels, Preprocessing
from service.errors import TooManyRequests, Unprocessable
from service.networks.confinement import where_networks_run
from service.networks.encoders import EncoderForm
from service.settings import Settings
from service.tables import ModelVersion

# A trial may take its network's whole time, and each holds a thread of the server's.
_TURNS = threading.BoundedSemaphore(2)
_PLACES = threading.BoundedSemaphore(8)
_RETRY_SECONDS = 10

__all__ = ["Channels", "InputDtype", "Layout", "NetworkForm"]


class InvalidArtifact(Unprocessable):
    """The file is not a usable network."""


@dataclass(frozen=True)
class ImageInput:
    """What a spec declares of the images that its networks take. What is None is as the file says, or the usual: nchw,
    rgb, float32, from 0 to 1."""

    layout: Layout | None = None
    channels: Channels | None = None
    dtype: InputDtype | None = None
    value_range: tuple[float, float] | None = None
    name: str | None = None


@dataclass(frozen=True)
class DeclaredEncoders:
    """φ and ψ as a spec declares them: `output` and `side_information_output` name the one of several that is meant;
    ψ's is as φ's unless it is named, if the file has one of that name."""

    embedding_dim: int
    side_information_dim: int | None
    preprocessing: dict[str, Any]
    input: ImageInput = ImageInput()
    output: str | None = None
    side_information_output: str | None = None


@dataclass(frozen=True)
class TransformationForms:
    """How h and g are to be run; `NetworkForm` has what can be said of each."""

    h: NetworkForm = AS_THE_FILE_SAYS
    g: NetworkForm = AS_THE_FILE_SAYS


AS_THE_FILES_SAY = TransformationForms()


class TooManyTrials(TooManyRequests):
    """As many networks are being tried as may be."""


@dataclass(frozen=True)
class TriedEncoder:
    """A φ or ψ that can be used."""

    kind: ArtifactKind
    form: EncoderForm


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the artifact of a network's files by their names. Raises `InvalidArtifact` (422)."""
    try:
        return pack_network(files)
    except ArtifactError as error:
        raise InvalidArtifact(str(error)) from error


def settle_preprocessing(declared: DeclaredEncoders, embedding_model: bytes) -> Preprocessing:
    """Return the preprocessing that a spec declares, with what φ's file says of its range. Raises `InvalidArtifact`
    (422), also where mean and std are of values in another range."""
    taken, values = declared.input, dict(declared.preprocessing)
    dtype = taken.dtype or read_said(embedding_model).dtype
    value_range = taken.value_range or (BYTES if dtype == "uint8" else UNIT)
    mean = values.get("mean")
    channels = taken.channels or ("grey" if isinstance(mean, list | tuple) and len(mean) == 1 else "rgb")
    if value_range == BYTES:
        depth = 1 if channels == "grey" else 3
        values = values | {
            name: [least] * depth for name, least in (("mean", 0.0), ("std", 1.0)) if not values.get(name)
        }
    try:
        given = {name: value for name, value in values.items() if value is not None}
        preprocessing = Preprocessing.from_json({**given, "channels": channels, "value_range": value_range})
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidArtifact(f"The preprocessing is not valid: {error}") from error

    if dtype == "uint8" and (value_range != BYTES or any(preprocessing.mean) or set(preprocessing.std) != {1.0}):
        raise InvalidArtifact(
            "The network takes uint8, so whole values from 0 to 255: leave mean and std out, and set input.range to"
            " [0, 255] or leave it out."
        )
    if value_range == UNIT and max(*map(abs, preprocessing.mean), *preprocessing.std) > 1:
        raise InvalidArtifact(
            "Mean or std is above 1 while values are from 0 to 1: you gave 0-255 values. Divide both by 255, or set"
            ' "input": {"range": [0, 255]} if the network takes values from 0 to 255.'
        )
    if value_range == BYTES and min(preprocessing.std) < 1:
        raise InvalidArtifact(
            "A std is below 1 while values are from 0 to 255: you gave 0-1 values. Multiply mean and std by 255, or"
            " leave input.range out if the network takes values from 0 to 1."
        )
    return preprocessing


def check_embedding_model(
    data: bytes, declared: DeclaredEncoders, preprocessing: Preprocessing, settings: Settings
) -> TriedEncoder:
    """Try φ on images as the spec declares them. Raises `InvalidArtifact` (422)."""
    taken = declared.input
    inputs = () if taken.name is None else (taken.name,)
    form = NetworkForm(inputs, declared.output, taken.layout, taken.dtype)
    return _checked_encoder("embedding_model", data, declared.embedding_dim, form, preprocessing, settings)


def check_side_information_model(
    data: bytes, declared: DeclaredEncoders, preprocessing: Preprocessing, settings: Settings
) -> TriedEncoder:
    """Try ψ on images as the spec declares them. Raises `InvalidArtifact` (422)."""
    assert declared.side_information_dim is not None
    output = declared.side_information_output
    if output is None and declared.output in read_said(data).outputs:
        output = declared.output
    form = NetworkForm((), output, declared.input.layout, declared.input.dtype)
    dim = declared.side_information_dim
    return _checked_encoder("side_information_model", data, dim, form, preprocessing, settings)


def _checked_encoder(
    part: str, data: bytes, dim: int, form: NetworkForm, preprocessing: Preprocessing, settings: Settings
) -> TriedEncoder:
    try:
        with _turn():
            found = try_encoder(
                data,
                output_dim=dim,
                input_size=preprocessing.shape,
                trust_torchscript=settings.trust_torchscript,
                open_session=where_networks_run(settings),
                form=form,
                value_range=preprocessing.value_range,
            )
        kind = artifact_kind(data)
    except ArtifactError as error:
        raise InvalidArtifact(f"{part}: {error}") from error
    return TriedEncoder(kind, EncoderForm(preprocessing.channels, preprocessing.value_range, found))


def check_transformation_network(
    part: str, data: bytes, before: ModelVersion, to_dim: int, form: NetworkForm, settings: Settings
) -> dict[str, Any]:
    """Try an h or g on rows of `before`'s dimensions and return what is known of it: its kind, and how it is run, or
    the network and its configuration when it is one of ours. Raises `InvalidArtifact` (422)."""
    try:
        with _turn():
            found = try_transformation_network(
                data,
                from_dim=before.embedding_dim,
                side_information_dim=before.side_information_dim,
                to_dim=to_dim,
                trust_torchscript=settings.trust_torchscript,
                open_session=where_networks_run(settings),
                form=form,
            )
        kind = artifact_kind(data)
        described = read_config(data) if kind == "safetensors" else {"form": found.to_json()}
    except ArtifactError as error:
        raise InvalidArtifact(f"{part}: {error}") from error
    return {"kind": kind, **described}


@contextmanager
def _turn() -> Iterator[None]:
    """Be one of the few that try a network, or wait for that as one of a few. Raises `TooManyTrials` (429)."""
    if not _PLACES.acquire(blocking=False):
        raise TooManyTrials("Too many networks are being tried just now; try again shortly.", _RETRY_SECONDS)
    try:
        with _TURNS:
            yield
    finally:
        _PLACES.release()
