"""`gallery-upgrade transform` and `verify` as they are typed, and what they run without."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
from typer.testing import CliRunner, Result

from service.cli.commands import main
from tests.unit.edge.files import ROWS, read_table, table, vectors, write_networks, write_table


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_file_is_upgraded_and_verified_and_a_wrong_one_exits_with_1(tmp_path: Path) -> None:
    h, g = write_networks(tmp_path)
    source, output = write_table(tmp_path / "in.parquet", table()), tmp_path / "out.arrow"
    networks = ["--h", h, "--g", g]

    made = invoke("transform", source, output, *networks)
    right = invoke("verify", source, output, *networks, "--sample", 50)
    again = invoke("transform", source, output, *networks)
    wrong = read_table(output)
    write_table(output, wrong.set_column(0, "id", wrong["id"].take(np.arange(ROWS)[::-1])))
    different = invoke("verify", source, output, *networks)

    assert (made.exit_code, f"{ROWS} rows upgraded to {output}" in made.stderr) == (0, True)
    assert (right.exit_code, right.stdout) == (0, "")
    assert (again.exit_code, "give --overwrite" in again.stderr) == (1, True)
    assert (different.exit_code, "'id' differs" in different.stdout) == (1, True)


def test_a_mistake_of_the_command_line_is_told_from_a_difference(tmp_path: Path) -> None:
    h, _ = write_networks(tmp_path)
    source = write_table(tmp_path / "in.parquet", table())

    assert invoke("transform", source, tmp_path / "out.parquet").exit_code == 2
    assert invoke("transform", tmp_path / "nothing", tmp_path / "out.parquet", "--h", h).exit_code == 2
    assert invoke("verify", source, tmp_path / "nothing.parquet", "--h", h).exit_code == 2
    assert invoke("transform", source, tmp_path / "out.parquet", "--h", source).exit_code == 1


FORBIDDEN = {"torch", "sqlalchemy", "fastapi", "celery", "psycopg", "onnx", "safetensors", "faiss"}
_LOADED = """
import sys
from service.cli.commands import main
main({arguments}, standalone_mode=False)
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(loaded & {forbidden}))
print(sorted(name for name in sys.modules if name.startswith(("service.", "models."))))
"""


def test_both_run_without_torch_a_database_or_the_service(tmp_path: Path) -> None:
    h, g = write_networks(tmp_path)
    source, output = write_table(tmp_path / "in.parquet", table()), tmp_path / "out.parquet"
    for command in ("transform", "verify"):
        arguments = [command, *map(str, [source, output, "--h", h, "--g", g])]

        ran = subprocess.run(
            [sys.executable, "-c", _LOADED.format(arguments=arguments, forbidden=FORBIDDEN)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

        forbidden, ours = map(ast.literal_eval, ran.stdout.splitlines())
        assert forbidden == []
        assert [name for name in ours if not name.startswith(("service.cli", "models.durable"))] == []
    assert len(vectors(read_table(output), "embedding")) == ROWS
