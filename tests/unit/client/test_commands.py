"""The commands without a service: their help, their options, and the file of contexts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from gallery_upgrade.cli import main
from gallery_upgrade.cli import session as sessions
from tests.scripted_service import ScriptedService

GALLERY = {
    "name": "photos",
    "model_version": "v1",
    "generation": 1,
    "items": 2,
    "revision": 3,
    "metric": "l2",
    "dtype": "float16",
    "index": "auto",
    "task": "instance",
    "thumbnails": True,
    "probe_images": 0,
    "has_side_information": False,
    "created_at": "2026-01-01T00:00:00Z",
}
REPORT: dict[str, Any] = {
    "report": 1,
    "revision": 3,
    "evidence": 5,
    "seconds": 0.5,
    "decision": None,
    "created_at": "2026-01-01T00:00:00Z",
    "content": {"gates": []},
}
UPGRADE: dict[str, Any] = {
    **dict.fromkeys(("bake", "decision", "error", "finished_at", "judged", "live_at")),
    "id": 1,
    "gallery": "photos",
    "state": "ready",
    "cutover": "manual",
    "speed": 1.0,
    "canary": 0.0,
    "canary_queries": {"asked": 0, "answered": 0, "failed": 0},
    "from_version": "v1",
    "to_version": "v2",
    "from_generation": 1,
    "to_generation": 2,
    "path": [],
    "progress": {},
    "observe": False,
    "smoothing": None,
    "gates": [],
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
}


@pytest.fixture(autouse=True)
def own_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GALLERY_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.delenv("GALLERY_URL", raising=False)
    monkeypatch.delenv("GALLERY_API_KEY", raising=False)


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


def invoke(*arguments: str, app: typer.Typer = main) -> Result:
    return CliRunner().invoke(app, arguments)


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Give every command below a group with the words that call it."""
    if not hasattr(group, "commands"):
        yield path, group
        return
    for name, command in group.commands.items():
        yield from commands(command, f"{path} {name}".strip())


@pytest.mark.parametrize("path", [path for path, _ in commands(typer.main.get_command(main))])
def test_help_says_what_each_command_and_option_is(path: str) -> None:
    (command,) = [command for known, command in commands(typer.main.get_command(main)) if known == path]

    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{path}: {parameter.name}"
    if not path.startswith("context"):
        assert {"--json", "--url", "--key", "--context"} <= {name for of in command.params for name in of.opts}
    assert invoke(*path.split(), "--help").exit_code == 0


def test_a_context_names_a_service_and_its_key_for_the_commands(service: ScriptedService, tmp_path: Path) -> None:
    service.will_answer(200, GALLERY)

    made = invoke("context", "set", 'my "home"', "--url", service.url, "--key", "secret")
    shown = invoke("galleries", "show", "photos", "--json")

    assert (made.exit_code, shown.exit_code) == (0, 0), made.output + shown.output
    assert json.loads(shown.stdout) == GALLERY
    path, headers, _ = service.asked[0]
    assert (path, headers["authorization"]) == ("/v1/galleries/photos", "Bearer secret")
    assert (tmp_path / "config.toml").stat().st_mode & 0o777 == 0o600
    assert invoke("context", "list").stdout == f'* my "home"  {service.url}\n'
    assert invoke("context", "use", "work").exit_code == 2
    assert invoke("galleries", "list", "--context", "work").exit_code == 2


def test_options_and_the_environment_come_before_the_context(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.will_answer(200, GALLERY)
    invoke("context", "set", "away", "--url", "http://127.0.0.1:9", "--key", "theirs")

    by_option = invoke("galleries", "show", "photos", "--url", service.url)
    monkeypatch.setenv("GALLERY_URL", service.url)
    monkeypatch.setenv("GALLERY_API_KEY", "mine")
    by_environment = invoke("galleries", "show", "photos")

    assert (by_option.exit_code, by_environment.exit_code) == (0, 0)
    assert "photos" in by_environment.stdout
    keys = [headers.get("authorization") for _, headers, _ in service.asked]
    assert keys == [None, "Bearer mine"]


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 3), ("inconclusive", 4), ("not_judged", 4)])
def test_a_report_is_told_by_the_exit_code(service: ScriptedService, verdict: str, code: int) -> None:
    service.will_answer(200, UPGRADE)
    service.will_answer(200, {**REPORT, "verdict": verdict})

    shown = invoke("upgrade", "report", "1", "--url", service.url)

    assert (shown.exit_code, shown.stderr) == (code, "")
    assert f"report 1: {verdict}" in shown.stdout


def test_a_refusal_is_a_sentence_or_the_problem_and_the_code_1(service: ScriptedService) -> None:
    service.will_answer(404, {"type": "urn:gallery-upgrade:unknown-gallery", "detail": "There is no gallery 'x'."})

    told = invoke("galleries", "show", "x", "--url", service.url)
    as_json = invoke("galleries", "show", "x", "--url", service.url, "--json")

    assert (told.exit_code, as_json.exit_code) == (1, 1)
    assert "gallery-upgrade: There is no gallery 'x'.\n" in told.stderr
    assert json.loads(as_json.stderr)["detail"] == "There is no gallery 'x'."


def test_an_upload_says_what_was_not_taken_and_refuses_to_delete_most(service: ScriptedService, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"pixels")
    (folder / "\udcff.png").write_bytes(b"pixels")
    result = {"id": "a.png", "status": "created", "error": None}
    service.will_answer(200, GALLERY)
    service.will_answer(200, {"results": [result]})
    service.will_answer(200, GALLERY)
    rejected = ["--ledger", str(tmp_path / "ledger"), "--rejected", str(tmp_path / "rejected.csv")]
    upload = ["upload", "photos", str(folder), *rejected, "--url", service.url]

    sent = invoke(*upload)
    for path in folder.iterdir():
        path.unlink()
    emptied = invoke(*upload, "--delete-missing")

    assert sent.stdout == "1 sent, 1 created, 0 replaced, 0 rejected, 0 unchanged, 0 missing, 0 deleted\n"
    assert (sent.exit_code, emptied.exit_code) == (1, 2)
    assert "1 files were rejected or are missing" in sent.stderr
    assert r"\xff.png" in (tmp_path / "rejected.csv").read_text()
    assert "Of 1 files that were sent" in emptied.stderr
    assert "--delete-most" in emptied.stderr


def test_an_interrupt_is_said_and_ends_with_its_code() -> None:
    said: list[str] = []

    def interrupted(session: sessions.Session) -> None:
        """Be interrupted."""
        raise KeyboardInterrupt(*said)

    app = typer.Typer()
    sessions.command(app, "wait")(interrupted)

    alone = invoke(app=app)
    said.append("After 3 files.")
    told = invoke(app=app)

    assert (alone.exit_code, alone.stderr) == (130, "gallery-upgrade: Interrupted.\n")
    assert (told.exit_code, told.stderr) == (130, "gallery-upgrade: After 3 files.\n")


@pytest.mark.parametrize("url", ["localhost:8000", "http://[::1"])
def test_a_url_at_which_nothing_can_be_asked_is_a_mistake_of_the_command_line(url: str) -> None:
    asked = invoke("galleries", "list", "--url", url)

    assert asked.exit_code == 2
    assert f"gallery-upgrade: {url!r} is not the address of a service" in asked.stderr
    assert invoke("galleries", "list", "--key", "two\nlines").exit_code == 2
    assert invoke("context", "set", "home", "--url", url).exit_code == 2
    assert invoke("context", "list").stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "photos", "x", "--filter", "{"],
        ["export", "photos", "out.csv"],
        ["upload", "photos", "/nowhere"],
        ["upgrade", "start", "photos"],
        ["galleries", "list", "--unknown"],
        ["galleries", "list", "--url", "localhost:8000"],
    ],
    ids=["filter", "suffix", "folder", "version", "option", "url"],
)
def test_what_is_not_asked_for_rightly_is_a_mistake_of_the_command_line(arguments: list[str]) -> None:
    told, as_json = invoke(*arguments), invoke(*arguments, "--json")

    assert (told.exit_code, as_json.exit_code) == (2, 2)
    problem = json.loads(as_json.stderr)
    assert (problem["type"], problem["status"], problem["errors"]) == ("about:blank", None, [])
    assert problem["detail"]
    assert told.stderr
    assert not told.stderr.startswith("{")
