"""What it costs that ONNX networks run in a process of their own: the same network on the same rows there and here, in
turns.

    python -m benchmarks.confined

h is of the paper's size, as the service exports it; the encoder has the convolutions of a ResNet-18 at 224 px, without
what is beside them, and random weights.
"""

import time
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from benchmarks.setting import machine, markdown, median_and_range, paper_sized_transformation
from models.artifacts import save_network
from models.confined_networks import Confinement
from models.onnx_export import transformation_as_onnx
from models.onnx_sessions import Session, open_here

_DIM, _SIZE = 128, 224
# (channels, stride) of each convolution; the first is of 7 x 7 pixels, the others of 3 x 3.
_LAYERS = [(64, 2), *((width, stride) for width in (64, 128, 256, 512) for stride in (2, 1, 1, 1))]
_BUDGET_PERCENT = 3
Values = NDArray[np.float32]


def run(repeats: Annotated[int, typer.Option(help="Turns of each.")] = 9) -> None:
    """Print the table."""
    h = transformation_as_onnx(save_network(paper_sized_transformation(_DIM, seed=0)), {})
    encoder = _encoder()
    confinement = Confinement(memory_bytes=4 * 2**30, opens_within_seconds=60, runs_within_seconds=60)
    generator = np.random.default_rng(0)
    rows = []
    for name, data, counts in (("h", h, (1_024, 4_096)), ("encoder", encoder, (1, 14, 64))):
        here, there = open_here(data, {}, "cpu"), confinement.open(data, {}, "cpu")
        for count in counts:
            inputs = {
                argument.name: generator.standard_normal(
                    (count, *(int(edge or 0) for edge in (argument.shape or ())[1:]))
                ).astype(np.float32)
                for argument in here.inputs
            }
            pairs = [(_seconds(here, inputs), _seconds(there, inputs)) for _ in range(repeats + 1)][1:]
            more = [100 * (apart / own - 1) for own, apart in pairs]
            own = median_and_range([count / seconds for seconds, _ in pairs], ",.1f")
            apart = median_and_range([count / seconds for _, seconds in pairs], ",.1f")
            rows.append((f"{name}, {count} rows", *own, *apart, *median_and_range(more, ".1f")))
    columns = (
        "network",
        "here, rows/s",
        "min to max",
        "in its process, rows/s",
        "min to max",
        "% longer",
        "min to max",
    )
    typer.echo(markdown(columns, rows))
    typer.echo(f"{machine()}; {repeats} turns; budget: {_BUDGET_PERCENT} %")


def _seconds(session: Session, inputs: dict[str, Values]) -> float:
    began = time.perf_counter()
    session.run([session.outputs[0].name], inputs)
    return time.perf_counter() - began


def _encoder() -> bytes:
    generator = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    weights = []
    name = "images"
    depth = 3
    for number, (width, stride) in enumerate(_LAYERS):
        edge = 7 if number == 0 else 3
        values = generator.standard_normal((width, depth, edge, edge)) / np.sqrt(depth * edge * edge)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"weights_{number}"))
        pads = [edge // 2] * 4
        made = f"features_{number}"
        sums = f"sums_{number}"
        nodes.append(helper.make_node("Conv", [name, f"weights_{number}"], [sums], strides=[stride, stride], pads=pads))
        nodes.append(helper.make_node("Relu", [sums], [made]))
        name, depth = made, width
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["embedding"]))
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, _SIZE, _SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", _LAYERS[-1][0]])],
        weights,
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


if __name__ == "__main__":
    typer.run(run)
