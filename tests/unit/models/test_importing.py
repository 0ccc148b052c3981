"""What importing `models` does to a process."""

import subprocess
import sys


def test_importing_runs_no_multi_threaded_operation() -> None:
    # A child forked from a parent that has run one hangs at its own first (libgomp).
    program = (
        "import os, sys\n"
        "import models.artifacts, models.images, models.metrics, models.losses, models.side_information\n"
        "import models.training.encoder, models.training.side_information, models.training.transformation\n"
        "import torch\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    torch.randn(800, 800) @ torch.randn(800, 800)\n"
        "    os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )

    finished = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60, check=False)

    assert finished.returncode == 7
