"""The whole way of a gallery that lives elsewhere, by commands alone: vectors in, an h from some of them, an upgrade
that vectors judge, and at last an encoder."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from typer.testing import CliRunner, Result

from service.cli.commands import main
from tests.judged import CLASSES, DIM, class_image, encoded_outside
from tests.networks import onnx_encoder_bytes
from tests.served import Served
from tests.without_networks import NETWORKS_SPEC, SPEC, ids_of, vectors_of

ITEMS, WANTED = 400, 150
SAME = np.eye(DIM, dtype=np.float32)
TURN = np.linalg.qr(np.random.default_rng(3).standard_normal((DIM, DIM)))[0].astype(np.float32)


def run(served: Served, *arguments: str, code: int | tuple[int, ...] = 0) -> Result:
    result = CliRunner().invoke(main, [*arguments, "--url", f"http://127.0.0.1:{served.port}"])
    codes = code if isinstance(code, tuple) else (code,)
    assert result.exit_code in codes, (arguments, result.output, result.exception)
    return result


def write_store(folder: Path) -> str:
    """Write a gallery of another store, vectors by v1 with what is said of them; return its URL."""
    said = {"label": [f"class {number % CLASSES}" for number in range(ITEMS)], "year": list(range(ITEMS))}
    pq.write_table(vectors_of(SAME, range(ITEMS), **said), folder / "elsewhere.parquet")
    return f"file://{folder}/elsewhere.parquet"


def encode_drawn(ids: Path, to: Path) -> list[str]:
    """Write what v2 gives for the images that a CSV names, with their ids beside; return these."""
    with ids.open(newline="") as file:
        names = [row["id"] for row in csv.DictReader(file)]
    np.save(to, encoded_outside(TURN, [int(name.removesuffix(".png")) for name in names]))
    to.with_suffix(".ids.txt").write_text("".join(f"{name}\n" for name in names))
    return names


def test_vectors_come_in_are_upgraded_by_vectors_and_are_searched_by_images_at_last(
    served: Served, tmp_path: Path
) -> None:
    run(served, "import", "g", write_store(tmp_path), "--model-version", "v1", "--create")
    run(served, "versions", "register", "v2", "--spec", json.dumps(SPEC))
    item = served.client.get("/v1/galleries/g/items/7.png").json()
    assert (item["label"], item["metadata"]) == ("class 2", {"year": 7})

    ids, new = tmp_path / "ids.csv", tmp_path / "new.npy"
    run(served, "pairs", "draw", "g", "--wanted", str(WANTED), "--seed", "5", "--out", str(ids))
    assert len(set(encode_drawn(ids, new))) == WANTED
    trained = run(served, "pairs", "train", "g", str(new), "--to", "v2", "--epochs", "2").stdout
    assert f"transformation 1 from v1 to v2: {WANTED} pairs" in trained
    assert "h is the linear map alone" in trained
    assert "own item first" in trained

    run(served, "upgrade", "start", "g", "--to", "v2", "--wait", code=4)  # not judged
    run(served, "upgrade", "references", "1", "--vectors", str(new))
    run(served, "upgrade", "evaluate", "1", code=(0, 4))  # so few references may leave it inconclusive
    report = served.client.get("/v1/upgrades/1/report").json()
    assert (report["evidence"], report["verdict"] in ("pass", "inconclusive")) == (WANTED, True)
    run(served, "upgrade", "cutover", "1")
    vector = encoded_outside(TURN, [7]).tolist()
    found = served.client.post("/v1/galleries/g/search/vectors", json={"vectors": vector, "k": 1}).json()
    assert (found["model_version"], found["neighbors"][0][0]["id"]) == ("v2", ids_of([7])[0])

    picture = tmp_path / "7-again.png"
    picture.write_bytes(class_image(7))
    refused = run(served, "search", "g", str(picture), code=1)
    assert "'v2' has no networks" in refused.stderr
    phi, spec = tmp_path / "phi.onnx", tmp_path / "spec.json"
    phi.write_bytes(onnx_encoder_bytes(DIM, seed=1, turn=TURN))
    spec.write_text(json.dumps(NETWORKS_SPEC))
    run(served, "versions", "add-networks", "v2", "--embedding-model", str(phi), "--spec", f"@{spec}")
    nearest = json.loads(run(served, "search", "g", str(picture), "-k", "1", "--json").stdout)
    assert [each["id"] for each in nearest] == ["7.png"]


def test_h_is_trained_from_a_store_that_stays_where_it_is(served: Served, tmp_path: Path) -> None:
    store = write_store(tmp_path)
    for name in ("v1", "v2"):
        run(served, "versions", "register", name, "--spec", json.dumps(SPEC))
    ids, new = tmp_path / "ids.csv", tmp_path / "new.npy"

    run(served, "pairs", "draw", store, "--wanted", "120", "--out", str(ids))
    encode_drawn(ids, new)
    run(served, "pairs", "train", store, str(new), "--to", "v2", "--epochs", "2", code=2)  # from which version?
    trained = run(
        served, "pairs", "train", store, str(new), "--from", "v1", "--to", "v2", "--epochs", "2", "--json"
    ).stdout

    printed = json.loads(trained)
    assert (printed["pairs"], printed["missing"], printed["h"]) == (120, 0, "the linear map alone, in closed form")
    assert printed["transformation"]["metrics"]["h"]["own_item_first"] == 1
