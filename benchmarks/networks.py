"""How fast h alone is, in each form, on batches in memory; and how close its outputs stay to those in float32.

python -m benchmarks.networks --dim 128
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.peers import PublicForm
from benchmarks.setting import device_name, machine, median_and_range, paper_sized_transformation
from models.normalize import l2_normalize
from models.precision import in_precision
from models.transformation import Transformation, fold_batch_norm

_Form = Callable[[Tensor, Tensor], Tensor]


def run(
    dim: Annotated[int, typer.Option(help="Of embedding and side-information, old and new.")] = 128,
    rows: Annotated[list[int] | None, typer.Option(help="Rows at once.")] = None,
    repeats: int = 7,
    device: str = "cpu",
) -> None:
    """Print the table; the forms take turns, so that a change of the machine's speed meets all of them."""
    network = paper_sized_transformation(dim, seed=0)
    forms = forms_of(network, device)
    columns = ("rows at once", "form", "median", "min to max", "x the paper's form (budget: 6)")
    title = f"h alone, {dim} dimensions, items/s on {device_name(device)}"
    table = Table(*columns, "least cosine to float32", title=title)

    for count in rows or [1_024, 4_096, 16_384]:
        inputs = torch.randn(2, count, dim, device=device)
        rates: dict[str, list[float]] = {name: [] for name in forms}
        with torch.inference_mode():
            exact = network.to(device)(inputs[0], inputs[1]).cpu().numpy()
            for _ in range(repeats + 1):
                for name, form in forms.items():
                    rates[name].append(count / _seconds(form, inputs, device))

            paper = statistics.median(rates["paper's form"][1:])
            for name, form in forms.items():
                measured = rates[name][1:]  # the first one prepares the device
                times = statistics.median(measured) / paper
                cosine = _least_cosine(exact, form(inputs[0], inputs[1]).float().cpu().numpy())
                figures = median_and_range(measured, ",.0f")
                table.add_row(f"{count:,}", name, *figures, f"{times:.1f}", f"{cosine:.6f}")
        table.add_section()

    console = Console()
    console.print(table)
    console.print(f"{machine()}; {repeats} repeats; budget: 6 times the paper's form")


def forms_of(network: Transformation, device: str) -> dict[str, _Form]:
    """Return h as the paper has it, and the forms that give the same sooner."""
    public = PublicForm(network).to(device)
    folded = fold_batch_norm(network).to(device)
    short = in_precision(network, "bfloat16").to(device)

    def paper(embedding: Tensor, side_information: Tensor) -> Tensor:
        output: Tensor = public(embedding[:, :, None, None], side_information[:, :, None, None])
        return output.flatten(1)

    forms: dict[str, _Form] = {"paper's form": paper, "float32, folded": folded, "bfloat16, folded": short}
    if device == "cpu":
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*deprecated.*", category=UserWarning)
        forms["int8, folded"] = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            fold_batch_norm(network), {nn.Linear}, torch.qint8
        )
    return forms


def _seconds(form: _Form, inputs: Tensor, device: str) -> float:
    began = time.perf_counter()
    form(inputs[0], inputs[1])
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _least_cosine(exact: np.ndarray, found: np.ndarray) -> float:
    return float((l2_normalize(exact) * l2_normalize(found)).sum(axis=1).min())


if __name__ == "__main__":
    typer.run(run)
