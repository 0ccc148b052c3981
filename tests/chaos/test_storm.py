"""The short form of the SIGKILL storm; `make chaos` is the long one."""

import pytest

from tests.chaos.storm.run import Options, Storm
from tests.conftest import real_servers


@pytest.mark.chaos
@pytest.mark.xdist_group("deaths")
@pytest.mark.parametrize("seed", [2])
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
