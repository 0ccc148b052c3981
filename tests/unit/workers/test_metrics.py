"""A worker's metrics are on a port of its own, if it is to have one."""

import socket

import httpx

from service.settings import Settings
from workers.metrics import serve_metrics
from workers.sweep import note_sweep


def test_a_worker_serves_its_metrics_and_says_how_old_its_sweep_is() -> None:
    port = serve_metrics(Settings(worker_metrics_port=0))
    note_sweep(seconds_ago=100.0)

    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text

    ages = [line.split()[1] for line in text.splitlines() if line.startswith("gallery_worker_sweep_age_seconds ")]
    assert [100 <= float(age) < 200 for age in ages] == [True]
    assert "process_resident_memory_bytes" in text
    assert "gallery_build_info" in text


def test_without_a_port_nothing_is_served() -> None:
    assert serve_metrics(Settings()) is None


def test_a_worker_works_without_where_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve_metrics(Settings(worker_metrics_port=taken.getsockname()[1])) is None
