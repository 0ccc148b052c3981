"""Which number format h and g run in on a device: found out by a short measured trial, not looked up."""

import logging
import statistics
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from models.transformation import Transformation, fold_batch_norm

# float16 is no faster than bfloat16 where either is fast, and its range is too small for what lies between layers.
Precision = Literal["float32", "bfloat16"]

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
_DIM = 128
_ROWS = 2_048
_REPEATS = 3
_WORTH_IT = 1.3  # a shorter format costs accuracy, so it must be this much faster

_log = logging.getLogger(__name__)


def in_precision(network: Transformation, precision: Precision) -> nn.Module:
    """Return a copy for inference only, with BatchNorm folded, that computes in `precision`.

    The branches, 4 % of the arithmetic of the paper's h and a tenth of two members of half its width, stay in float32:
    in bfloat16 they would add half as much error again as the mixer, which widens what it is given.
    """
    folded = fold_batch_norm(network)
    if precision == "bfloat16":
        for member in folded.members:
            member.mixer_dtype = torch.bfloat16
            member.mixer.to(member.mixer_dtype)
    return folded


def faster_precision(rates: Mapping[Precision, float]) -> Precision:
    """Return the format to choose by the rows per second of each: float32 unless the other is clearly faster."""
    return "bfloat16" if rates["bfloat16"] > _WORTH_IT * rates["float32"] else "float32"


@lru_cache(maxsize=8)
def fastest_precision(device: str) -> Precision:
    """Return the format in which an h of the paper's size is fastest on `device`; float32 unless it clearly is not.

    Takes about a second, once per process. What each format gave is logged, in rows per second.
    """
    rates = {precision: _rows_per_second(device, precision) for precision in PRECISIONS}
    chosen = faster_precision(rates)
    _log.info("h and g run in %s on %s; rows per second: %s", chosen, device, {k: round(v) for k, v in rates.items()})
    return chosen


def _rows_per_second(device: str, precision: Precision) -> float:
    network = in_precision(Transformation(_DIM, _DIM, _DIM), precision).to(device)
    inputs = torch.randn(2, _ROWS, _DIM, device=device)
    seconds = []
    with torch.inference_mode():
        for _ in range(_REPEATS + 1):  # the first one prepares the device
            began = time.perf_counter()
            network(inputs[0], inputs[1])
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return _ROWS / statistics.median(seconds[1:])
