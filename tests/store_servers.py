"""Run the tests of stores that are not in the lock, or are there in their embedded forms: `make test-stores`.

    python -m tests.store_servers [PYTEST_OPTIONS]

A standalone Milvus, by the wheel `milvus`, is asked by all that otherwise use Milvus Lite; Chroma is asked in a folder
and as a server. Both live in an environment beside the project's, whose packages it sees: the server is older than the
client, and Chroma brings versions of its own.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

from tests.served import is_listening

_ENVIRONMENT = Path(".venv-stores")
_WHEELS = ["milvus==2.3.5", "chromadb==1.5.9"]
_PORT = 19530
_START_SECONDS = 180.0
_CHROMA = ["tests/unit/connectors/test_chroma.py"]
_MILVUS = [
    "tests/unit/index/test_contract.py",
    "tests/unit/index/test_milvus.py",
    "tests/unit/connectors/test_milvus.py",
    "tests/integration/domain/indexes/test_milvus_engine.py",
    "tests/integration/domain/search/test_exact_reference.py",
]


def main() -> int:
    if not (_ENVIRONMENT / "bin" / "milvus-server").exists():
        _install()
    python = str(_ENVIRONMENT / "bin" / "python")
    of_chroma = subprocess.run([python, "-m", "pytest", *_CHROMA, *sys.argv[1:]], check=False).returncode
    return _ask_milvus() or of_chroma


def _install() -> None:
    venv.create(_ENVIRONMENT, with_pip=True)
    (packages,) = (_ENVIRONMENT / "lib").glob("*/site-packages")
    (packages / "project.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([_ENVIRONMENT / "bin" / "pip", "install", "--quiet", *_WHEELS], check=True)


def _ask_milvus() -> int:
    with tempfile.TemporaryDirectory(prefix="milvus-") as folder:
        program = (_ENVIRONMENT / "bin" / "milvus-server").absolute()
        server = subprocess.Popen([program, "--data", folder], cwd=folder, stdout=subprocess.DEVNULL)
        try:
            _wait_for(server)
            environment = {**os.environ, "MILVUS_URL": f"http://127.0.0.1:{_PORT}"}
            tests = [sys.executable, "-m", "pytest", *_MILVUS, "-k", "milvus", *sys.argv[1:]]
            return subprocess.run(tests, env=environment, check=False).returncode
        finally:
            server.terminate()
            server.wait()


def _wait_for(server: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + _START_SECONDS
    while not is_listening(_PORT):
        if server.poll() is not None or time.monotonic() > ends:
            raise RuntimeError("Milvus does not start.")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
