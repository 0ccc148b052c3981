"""The trial of a network before it is registered: is it a function of one row?

A network that was exported in training mode gives a row other values beside other rows (BatchNorm), or other values
each time (Dropout); alone, as a query comes, every row may come out the same. So the same rows are run together, again,
one by one and in the reverse order. Twice the same run must agree to rounding; the other runs within 5 % of how far the
rows are from their mean, since a library may add in another order, and a network may quantize by its batch.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.loaded_networks import ArtifactError, Layout, TrialFailed, Vectors, sentence_of
from models.preprocessing import BYTES, ValueRange

TRIAL_ROWS = 5
Trial = Callable[[Sequence[Vectors]], Vectors]
_SHARE_OF_SPREAD = 0.05
# What a float may be off by rounding in a deep network, as a share of the outputs' size.
_ROUNDING = {"float16": 5e-3}
_ROUNDING_OF_OTHERS = 2e-5
_IN_TRAINING = "is BatchNorm in training mode, or Dropout active? Export after `model.eval()`."


def trial_images(rows: int, shape: tuple[int, int, int], value_range: ValueRange) -> NDArray[np.float32]:
    """Return (rows, depth, height, width) noise, each image with a brightness of its own: normal values, or whole
    ones from 0 to 255."""
    generator = np.random.default_rng(0)
    if value_range == BYTES:
        darkest = np.linspace(0, 96, rows)[:, None, None, None]
        return np.rint(generator.uniform(darkest, 255, (rows, *shape))).astype(np.float32)
    return generator.standard_normal((rows, *shape), np.float32) + generator.standard_normal(
        (rows, 1, 1, 1), np.float32
    ) / np.float32(4)


def run_trial(network: Trial, inputs: Sequence[Vectors], dim: int) -> Vectors:
    """Return (B, dim) float32 outputs for inputs (B, ...). Raises `TrialFailed` with what the network's library said,
    and `ArtifactError` for outputs of another shape or that are not finite."""
    rows = len(inputs[0])
    try:
        output = network(inputs)
    except ArtifactError:
        raise
    except Exception as error:  # a network may raise anything
        raise TrialFailed(f"A trial run on {_counted(rows)} failed: {sentence_of(error)}") from error
    if output.shape != (rows, dim):
        raise ArtifactError(
            f"A trial run on {rows} inputs gave an output of shape {tuple(output.shape)}; ({rows}, {dim}) is due."
        )
    if not np.isfinite(output).all():
        raise ArtifactError("A trial run gave values that are not finite.")
    return output


def check_function_of_rows(network: Trial, inputs: Sequence[Vectors], dim: int, dtype: str | None) -> None:
    """Raise `ArtifactError`, naming what varied, unless each row of (B, ...) inputs comes out alike however it is run,
    and not all rows alike; `dtype` is that of the network's inputs."""
    together = run_trial(network, inputs, dim)
    again = run_trial(network, inputs, dim)
    rows = len(together)
    alone = np.concatenate([run_trial(network, [values[[row]] for values in inputs], dim) for row in range(rows)])
    turned = run_trial(network, [np.ascontiguousarray(values[::-1]) for values in inputs], dim)[::-1]

    rounding = _ROUNDING.get(dtype or "", _ROUNDING_OF_OTHERS) * max(_size(together), _size(alone))
    if _size(again - together) > rounding:
        raise ArtifactError(f"The network gives other values for the same rows when it runs again: {_IN_TRAINING}")
    allowed = max(rounding, _SHARE_OF_SPREAD * _spread(together))
    for found, where in ((alone, "than alone"), (turned, "than in another order")):
        if _size(found - together) > allowed:
            raise ArtifactError(
                f"The network gives other values for the same row in a batch of {rows} {where}: {_IN_TRAINING}"
            )
    if _spread(together) <= rounding / 10:
        raise ArtifactError("The network gives the same vector for every input, so that nothing could be found by it.")


def check_layout(
    shape: Sequence[int | None], wanted: Layout | None, image: tuple[int, int, int], described: str
) -> Layout:
    """Return the layout in which the declared shape of an input takes images of (depth, height, width); nchw where it
    takes both. Raises `ArtifactError` where it takes none, or not the one that is wanted."""
    depth, height, width = image
    shapes: dict[Layout, tuple[int, int, int]] = {"nchw": image, "nhwc": (height, width, depth)}
    fits = [layout for layout in shapes if _takes(shape, shapes[layout])]
    if wanted in fits or (wanted is None and fits):
        return wanted or fits[0]
    given = ", ".join(map(str, shapes[wanted or "nchw"]))
    raise ArtifactError(
        f"The network's input {described} is not what the spec gives it, (batch, {given}): set preprocessing.size,"
        " input.channels and input.layout as the file has them, or export it for these."
    )


def _takes(declared: Sequence[int | None], given: Sequence[int]) -> bool:
    return len(declared) == len(given) + 1 and all(
        length in (None, due) for length, due in zip(declared[1:], given, strict=True)
    )


def _size(vectors: Vectors) -> float:
    """Return the largest norm of a row."""
    return float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())


def _spread(vectors: Vectors) -> float:
    """Return how far rows are from their mean: the root of the mean squared distance."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    return float(np.sqrt(np.square(centred).sum(axis=1).mean()))


def _counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"
