"""Networks that run where they can be killed: what they give, and that whatever they do ends with them."""

import gc
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.confined_networks import ConfinedSession, Confinement, NetworkRaised
from models.loaded_networks import NetworkStopped
from models.onnx_sessions import Session, Values, open_here

DIM = 8
WEIGHTS = np.random.default_rng(0).standard_normal((DIM, DIM)).astype(np.float32)
ROOMY = Confinement(memory_bytes=2**30, opens_within_seconds=60, runs_within_seconds=60)
HASTY = Confinement(memory_bytes=2**30, opens_within_seconds=60, runs_within_seconds=2)


def network(
    nodes: Sequence[NodeProto], constants: Sequence[TensorProto] = (), output: int = TensorProto.FLOAT
) -> bytes:
    """A network from x (b, 8) float32 to y."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", DIM])],
        [helper.make_tensor_value_info("y", output, None)],
        constants,
    )
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10
    ).SerializeToString()
    return model


def linear() -> bytes:
    return network([helper.make_node("MatMul", ["x", "w"], ["y"])], [numpy_helper.from_array(WEIGHTS, "w")])


def endless_for_more_than(rows: int) -> bytes:
    """A loop that never ends where it is given more rows than that, and is the identity where it is not."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("go_on", "value")],
        "body",
        [
            info("step", TensorProto.INT64, []),
            info("go_on", TensorProto.BOOL, []),
            info("value", TensorProto.FLOAT, ["b", DIM]),
        ],
        [info("go_on_out", TensorProto.BOOL, []), info("value_out", TensorProto.FLOAT, ["b", DIM])],
    )
    nodes = [
        helper.make_node("Shape", ["x"], ["count"], end=1),
        helper.make_node("Greater", ["count", "most"], ["is_more"]),
        helper.make_node("Squeeze", ["is_more"], ["first"]),
        helper.make_node("Loop", ["", "first", "x"], ["y"], body=body),
    ]
    return network(nodes, [numpy_helper.from_array(np.array([rows]), "most")])


def takes_memory(numbers: int) -> bytes:
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=helper.make_tensor("one", 1, [1], [1.0])),
        helper.make_node("ReduceMax", ["ones"], ["one"], keepdims=0),
        helper.make_node("Mul", ["x", "one"], ["y"]),
    ]
    return network(nodes, [numpy_helper.from_array(np.array([numbers]), "shape")])


def rows(count: int) -> Values:
    return np.random.default_rng(count).standard_normal((count, DIM)).astype(np.float32)


def output_of(session: Session, values: Values) -> Values:
    (output,) = session.run(["y"], {"x": values})
    return output


def children() -> list[str]:
    """Command lines of the living children of this process."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    numbers = [number for path in found for number in path.read_text().split()]
    lines = [Path(f"/proc/{number}/cmdline").read_bytes().decode().replace("\0", " ") for number in numbers]
    return [line for line in lines if "models.onnx_child" in line]


@pytest.mark.parametrize("count", [0, 1, 3, 5_000])
def test_it_gives_what_it_gives_in_this_process(count: int) -> None:
    confined, own = ROOMY.open(linear(), {}, "cpu"), open_here(linear(), {}, "cpu")

    assert (confined.inputs, confined.outputs) == (own.inputs, own.outputs)
    np.testing.assert_array_equal(output_of(confined, rows(count)), output_of(own, rows(count)), strict=True)


def test_many_threads_get_their_own_rows() -> None:
    session = ROOMY.open(linear(), {}, "cpu")

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda count: output_of(session, rows(count)), range(1, 65)))

    for count, given in zip(range(1, 65), found, strict=True):
        np.testing.assert_allclose(given, rows(count) @ WEIGHTS, atol=1e-5)


def test_what_the_network_raises_is_told_and_it_goes_on() -> None:
    session = ROOMY.open(linear(), {}, "cpu")

    with pytest.raises(NetworkRaised, match="index: 1 Got: 3 Expected: 8"):
        output_of(session, rows(4)[:, :3])

    assert output_of(session, rows(4)).shape == (4, DIM)


def test_a_loop_that_never_ends_is_stopped_and_the_next_run_works() -> None:
    session = HASTY.open(endless_for_more_than(2), {}, "cpu")

    with pytest.raises(NetworkStopped, match="took longer than 2 s, and was stopped"):
        output_of(session, rows(3))

    np.testing.assert_array_equal(output_of(session, rows(2)), rows(2))


def test_a_run_that_anothers_end_took_with_it_is_run_once_more() -> None:
    session = HASTY.open(endless_for_more_than(2), {}, "cpu")

    with ThreadPoolExecutor(3) as threads:
        endless = threads.submit(session.run, "y", {"x": rows(3)})
        while not endless.done():
            np.testing.assert_array_equal(output_of(session, rows(1)), rows(1))

    assert isinstance(endless.exception(), NetworkStopped)


def test_a_child_that_dies_is_started_again() -> None:
    session = ROOMY.open(linear(), {}, "cpu")
    assert isinstance(session, ConfinedSession)
    first = output_of(session, rows(2))

    os.kill(session.process_id, 9)

    np.testing.assert_array_equal(output_of(session, rows(2)), first)


def test_what_needs_more_memory_than_it_may_have_fails_alone() -> None:
    with pytest.raises((NetworkRaised, NetworkStopped)):
        output_of(ROOMY.open(takes_memory(2**30), {}, "cpu"), rows(2))


def test_a_file_that_is_no_network_is_told_as_onnx_runtime_tells_it() -> None:
    with pytest.raises(NetworkRaised, match=r"Protobuf parsing failed|INVALID_PROTOBUF"):
        ROOMY.open(b"\x08nothing", {}, "cpu")


def test_an_output_of_strings_is_refused() -> None:
    strings = network([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)], output=TensorProto.STRING)

    with pytest.raises(NetworkRaised, match="gives object values"):
        output_of(ROOMY.open(strings, {}, "cpu"), rows(1))


def test_weights_in_files_beside_the_network_are_its_own() -> None:
    tensor = numpy_helper.from_array(WEIGHTS, "w")
    onnx.external_data_helper.set_external_data(tensor, "weights.bin", 0, WEIGHTS.nbytes)
    tensor.ClearField("raw_data")
    data = network([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor])

    session = ROOMY.open(data, {"weights.bin": WEIGHTS.tobytes()}, "cpu")

    np.testing.assert_allclose(output_of(session, rows(3)), rows(3) @ WEIGHTS, atol=1e-5)


def test_nothing_is_left_when_nobody_holds_the_network() -> None:
    session = ROOMY.open(linear(), {}, "cpu")
    assert children()

    del session
    gc.collect()

    assert not children()


def test_a_child_knows_nothing_of_the_secrets_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALLERY_DATABASE_URL", "postgresql://user:secret@host/gallery")

    session = ROOMY.open(linear(), {}, "cpu")

    assert isinstance(session, ConfinedSession)
    assert b"secret" not in Path(f"/proc/{session.process_id}/environ").read_bytes()


def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:  # a process of its own, which is killed in the middle of a run that never ends
        try:
            session = ROOMY.open(endless_for_more_than(0), {}, "cpu")
            assert isinstance(session, ConfinedSession)
            os.write(write, f"{session.process_id}\n".encode())
            output_of(session, rows(1))
        finally:
            os._exit(1)
    with os.fdopen(read) as told:
        child = int(told.readline())

    os.kill(parent, 9)
    os.waitpid(parent, 0)

    ends = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < ends:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()
