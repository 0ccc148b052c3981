"""Every alert of docs/operations/alerts.yml fires on what a service in trouble is scraped for, and none on a sound one.

Prometheus's own `promtool` evaluates the rules, on series whose values are those of real scrapes.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from service.api.dependencies import Parts
from service.app import create_app
from service.db import Database
from service.domain.jobs import TRAINING, fail_job, start_job
from service.domain.judging.reports import NewReport, store_report
from service.domain.upgrade.upgrades import fail_upgrade, get_upgrade
from service.domain.verdict import Verdict
from service.queue import ADVANCE_UPGRADE, TaskQueue, celery_application
from service.settings import Settings
from tests.conftest import Servers, fresh_database, small_settings
from tests.fakes import Call
from tests.networks import image_bytes
from tests.replicas import watched_parts
from tests.scenario import create_gallery, post_images, register_transformation, register_version, start_upgrade
from tests.served import free_port, wait_for
from tests.working import run_until
from workers.app import make_worker_parts
from workers.sweep import note_sweep

RULES = Path(__file__).parents[2] / "docs" / "operations" / "alerts.yml"
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text())
pytestmark = pytest.mark.xdist_group("alerts")  # they share one service

GALLERIES = ("stuck", "failed", "gate", "lease")
# A value that was scraped for two hours, and then another for as long; looked at near the end of the second.
_MINUTES, _AT = 120, "150m"


@dataclass(frozen=True)
class Scrape:
    """What an instance of a job was scraped for; None where it did not answer."""

    job: str
    instance: str
    text: str | None

    def samples(self) -> dict[str, float]:
        """Return the values of its series, and of Prometheus's own `up`."""
        target = f'job="{self.job}",instance="{self.instance}"'
        values = {f"up{{{target}}}": float(self.text is not None)}
        for family in text_string_to_metric_families(self.text or ""):
            for sample in family.samples:
                labels = "".join(f',{name}="{value}"' for name, value in sample.labels.items())
                values[f"{sample.name}{{{target}{labels}}}"] = sample.value
        return values


def firing(before: Sequence[Scrape], after: Sequence[Scrape], folder: Path) -> set[str]:
    """Return the alerts that fire when scrapes have been `after` for half an hour, and were `before` until then."""
    shutil.copy(RULES, folder / "alerts.yml")
    was = {name: value for scrape in before for name, value in scrape.samples().items()}
    values = {name: value for scrape in after for name, value in scrape.samples().items()}
    series = "".join(
        f"      - series: '{name}'\n        values: '{_values(name, was.get(name), value)}'\n"
        for name, value in values.items()
        if re.match(r"(up|gallery_|http_requests_total)", name)
    )
    # Each is expected not to fire; promtool says which ones do.
    wanted = "".join(f"      - {{eval_time: {_AT}, alertname: {name}, exp_alerts: []}}\n" for name in ALERTS)
    path = folder / "test.yml"
    path.write_text(
        "rule_files: [alerts.yml]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n"
        f"{series}    alert_rule_test:\n{wanted}"
    )
    ended = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    said = ended.stdout + ended.stderr
    found = set(re.findall(r"alertname: (\w+), time: \S+\s+exp:\[\s*\],\s+got:\[", said))
    assert (ended.returncode == 0) == (found == set()), said
    return found


def _values(name: str, was: float | None, value: float) -> str:
    """Return the values of a series in promtool's notation: a counter rises each minute as it rose from `was`."""
    is_counter = "_total{" in name
    was = (0.0 if is_counter else value) if was is None else was
    step = value - was if is_counter else 0.0
    return f"{was!r}x{_MINUTES} {value!r}+{step!r}x{_MINUTES}"


@pytest.fixture(scope="module")
def promtool() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: Debian has it in its package prometheus")


@contextmanager
def served(settings: Settings, parts: Parts | None = None) -> Iterator[TestClient]:
    app = create_app(settings) if parts is None else create_app(settings, lambda _: parts)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def scrape(client: TestClient, instance: str) -> Scrape:
    """Scrape an API process that has just looked."""
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # the client's type says any ASGI application
    parts.figures.look()
    return Scrape("gallery-api", instance, client.get("/metrics").text)


def scrape_worker(port: int, instance: str = "gone") -> Scrape:
    try:
        return Scrape("gallery-worker", instance, httpx.get(f"http://127.0.0.1:{port}/metrics").text)
    except httpx.ConnectError:
        return Scrape("gallery-worker", instance, None)


def fill(client: TestClient, settings: Settings) -> dict[str, int]:
    """Make a gallery with probe images and one for each trouble of an upgrade, which is ready; return the upgrades."""
    for version in ("v1", "v2"):
        register_version(client, version)
    register_transformation(client, "v1", "v2")
    create_gallery(client, "drifted", probe_images=4)
    post_images(client, range(4), "drifted")
    worker = make_worker_parts(settings, celery_application(settings))
    upgrades = {}
    for name in GALLERIES:
        create_gallery(client, name)
        post_images(client, range(3), name)
        upgrades[name] = start_upgrade(client, "v2", name)
        run_until(worker, client, upgrades[name], "ready")
    worker.database.engine.dispose()
    return upgrades


def make_trouble(database: Database, upgrades: dict[str, int]) -> None:
    """Leave in rows what workers, networks and time would."""
    with database.session_scope() as session:
        fail_upgrade(session, upgrades["failed"], "It failed.")
        store_report(session, upgrades["gate"], NewReport(Verdict.FAIL, 1, 1, "{}", 1.0))
        gallery_id = get_upgrade(session, upgrades["failed"]).gallery_id
        fail_job(session, start_job(session, TRAINING, gallery_id, None, None), "It failed.")
        stuck = "UPDATE upgrades SET state = 'transforming', updated_at = now() - interval '1 hour' WHERE id = :id"
        session.execute(text(stuck), {"id": upgrades["stuck"]})
        old = "UPDATE {} SET {} = now() - interval '1 hour' WHERE upgrade_id = :id"
        session.execute(text(old.format("upgrade_batches", "done_at")), {"id": upgrades["stuck"]})
        session.execute(text(old.format("jobs", "updated_at")), {"id": upgrades["stuck"]})
        left = "UPDATE upgrade_batches SET state = 'claimed', lease_expires_at = now() - interval '1 hour'"
        session.execute(text(f"{left} WHERE upgrade_id = :id"), {"id": upgrades["lease"]})
        measured = 'UPDATE generations SET index_parameters = \'{"kind": "hnsw", "recall_at_10": 0.5}\''
        session.execute(text(f"{measured} WHERE id IN (SELECT active_generation_id FROM galleries)"))
        session.execute(text("UPDATE probe_images SET image = :image"), {"image": image_bytes(99)})


@pytest.fixture(scope="module")
def found(
    promtool: None, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[set[str], set[str]]]:
    """What fires on a sound service, and what on the same service once everything that can go wrong did."""
    folder = tmp_path_factory.mktemp("alerts")
    with fresh_database(servers) as url:
        sound = small_settings(servers, url, folder / "data")
        worker_server, _ = start_http_server(0, "127.0.0.1")
        port = worker_server.server_port
        note_sweep()
        with served(sound) as client:
            upgrades = fill(client, sound)
            before = [scrape(client, "a"), scrape_worker(port), scrape_worker(port, "stalled")]

        troubled = sound.model_copy(update={"disk_reserve_bytes": 2**60})
        parts, source = watched_parts(troubled)
        queue = TaskQueue(celery_application(troubled))
        away = sound.model_copy(
            update={
                "database_url": f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/nothing",
                "broker_url": f"redis://127.0.0.1:{free_port()}",
            }
        )
        make_trouble(parts.database, upgrades)

        def fail_to_follow(call: Call) -> None:
            if call == "follow":
                raise OSError("the index cannot be read")

        with served(troubled, parts) as client:
            wait_for(lambda: client.get("/livez").is_success and parts.replicas.is_loaded and parts.drift.has_looked)
            source.before = fail_to_follow
            with parts.database.session_scope() as session:
                session.execute(text("UPDATE galleries SET revision = revision + 1 WHERE name = 'drifted'"))
            for number in range(1_001):
                queue.send(ADVANCE_UPGRADE, 10**9 + number)
            after = [scrape(client, "a")]
        celery_application(troubled).control.purge()
        before.append(Scrape("gallery-api", "b", generate_latest(REGISTRY).decode()))
        with served(away) as client:
            for _ in range(200):
                client.get("/v1/galleries")
            after += [scrape(client, "b"), Scrape("gallery-api", "c", None)]
        note_sweep(seconds_ago=3600.0)
        after.append(scrape_worker(port, "stalled"))
        worker_server.shutdown()
        worker_server.server_close()
        after.append(scrape_worker(port))

        yield firing(before, before, folder), firing(before, after, folder)


def test_no_alert_fires_on_a_sound_service(found: tuple[set[str], set[str]]) -> None:
    assert found[0] == set()


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_when_what_it_is_about_happens(found: tuple[set[str], set[str]], alert: str) -> None:
    assert alert in found[1]


def test_the_rules_are_valid(promtool: None) -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, check=True)
