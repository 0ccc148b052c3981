"""Run what uses Milvus against a standalone server, one test after another: `make test-milvus`.

    python -m tests.milvus_standalone [PYTEST_OPTIONS]

The server is that of the wheel `milvus`, in an environment of its own, since it is older than the client.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

_ENVIRONMENT = Path(".venv-milvus")
_WHEEL = "milvus==2.3.5"
_PORT = 19530
_START_SECONDS = 180.0
_TESTS = [
    "tests/unit/index/test_contract.py",
    "tests/unit/index/test_milvus.py",
    "tests/unit/connectors/test_milvus.py",
    "tests/integration/domain/indexes/test_milvus_engine.py",
    "tests/integration/domain/search/test_exact_reference.py",
]


def main() -> int:
    program = _ENVIRONMENT / "bin" / "milvus-server"
    if not program.exists():
        venv.create(_ENVIRONMENT, with_pip=True)
        subprocess.run([_ENVIRONMENT / "bin" / "pip", "install", "--quiet", _WHEEL], check=True)
    with tempfile.TemporaryDirectory(prefix="milvus-") as folder:
        server = subprocess.Popen([program.absolute(), "--data", folder], cwd=folder, stdout=subprocess.DEVNULL)
        try:
            _wait_for(server)
            environment = {**os.environ, "MILVUS_URL": f"http://127.0.0.1:{_PORT}"}
            tests = [sys.executable, "-m", "pytest", *_TESTS, "-k", "milvus", *sys.argv[1:]]
            return subprocess.run(tests, env=environment, check=False).returncode
        finally:
            server.terminate()
            server.wait()


def _wait_for(server: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", _PORT)) == 0:
                return
        if server.poll() is not None or time.monotonic() > ends:
            raise RuntimeError("Milvus does not start.")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
