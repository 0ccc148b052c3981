"""What the distribution needs to be imported."""

import subprocess
import sys

import pytest

_HEAVY = ("torch", "numpy", "pandas", "pyarrow", "PIL", "pydantic", "typer", "service", "models")
_HEAVY_FOR_COMMANDS = ("torch", "numpy", "pandas", "pyarrow", "PIL", "pydantic", "httpx", "service", "models")


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [("from gallery_upgrade import Client, AsyncClient", _HEAVY), ("import gallery_upgrade.cli", _HEAVY_FOR_COMMANDS)],
    ids=["client", "commands"],
)
def test_what_is_heavy_is_imported_when_it_is_used(statement: str, heavy: tuple[str, ...]) -> None:
    script = f"{statement}; import sys; print(*[name for name in {heavy!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
