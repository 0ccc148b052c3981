"""What values look like on a page, and the commands that stand under buttons."""

import shlex
from datetime import UTC, datetime

import pytest

from service.api.console.rendering import NOTHING, curl, duration, isolated, size, when


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, NOTHING),
        (0.0321, "32 ms"),
        (4.25, "4.2 s"),
        (59.4, "59 s"),
        (61, "1 min 1 s"),
        (3_725, "1 h 2 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(None, NOTHING), (900, "900 bytes"), (1_536, "1.5 KiB"), (5 * 2**40, "5.0 TiB")]
)
def test_sizes_are_in_the_largest_unit_of_which_there_is_one(count: int | None, words: str) -> None:
    assert size(count) == words


def test_times_say_their_zone() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    assert when(at) == '<time datetime="2026-01-02T03:04:05+00:00">2026-01-02 03:04:05 UTC</time>'


def test_what_users_wrote_is_escaped_and_its_direction_stays_inside() -> None:
    assert isolated("<b>\u202e") == "<bdi>&lt;b&gt;\u202e</bdi>"


def test_a_command_is_one_that_a_shell_takes_apart_again() -> None:
    line = curl("http://here", "POST", "/v1/x", {"id": "it's; rm -rf"})

    assert shlex.split(line) == [
        "curl", "-sS", "-X", "POST", "-H", "Content-Type: application/json", "-d", '{"id": "it\'s; rm -rf"}',
        "http://here/v1/x",
    ]  # fmt: skip
    assert curl("http://here", "GET", "/v1/x") == "curl -sS http://here/v1/x"
