"""`python -m tests.chaos.storm.worker <rows>`: a worker like any other, with an exact index up to so many rows.

A graph of 200,000 vectors takes a minute of two cores and is built in one go, so that a storm would mostly watch
builds begin again.
"""

import sys

import service.index.files
from service.serving import worker_command
from workers.app import app

if __name__ == "__main__":
    service.index.files.FLAT_BELOW_ROWS = int(sys.argv[1])
    command = worker_command()
    app.worker_main(command[command.index("worker") :])
