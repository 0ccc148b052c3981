"""The short form of the SIGKILL storm; `make chaos` is the long one."""

import random
from pathlib import Path

import pytest

from tests.chaos.storm.oracle import Oracle, Record, Violations
from tests.chaos.storm.run import Options, Storm
from tests.chaos.storm.traffic import Client, Traffic, Writer
from tests.chaos.storm.values import Reference, Write
from tests.conftest import real_servers


@pytest.mark.chaos
@pytest.mark.xdist_group("deaths")
@pytest.mark.parametrize("seed", [2, 7])
def test_a_storm_of_kills_loses_nothing_and_mixes_nothing(
    seed: int, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("storm")
    options = Options(items=4_000, writes=2_000, chunk_items=100, kill_every_seconds=1.5, dwell_seconds=1.0)

    with real_servers(request, folder / "servers") as servers:
        storm = Storm(servers, folder, options)
        storm.fill()
        outcome = storm.run(seed)

    assert outcome.violations == [], f"seed {seed}"
    assert sum(outcome.kills.values()) > 0


def test_a_writer_of_a_storm_uses_no_token_of_the_base_again(tmp_path: Path) -> None:
    base = {f"1-{number}": Record(ever=(Write(200_000_001 + number, "v1"),)) for number in range(3)}
    chance = random.Random(0)
    traffic = Traffic(
        ["http://127.0.0.1:1"],
        Oracle(base),
        Violations(0),
        Reference(),
        0,
        chunk_items=2,
        writer_pause_seconds=0.0,
        pictures=tmp_path,
    )
    writer = Writer(traffic, 1, Client(traffic, chance), chance)

    writer.import_new(2)

    tried = [write.token for record in traffic.oracle.records.values() for write in record.ever]
    assert sorted(tried) == list(range(200_000_001, 200_000_006))
