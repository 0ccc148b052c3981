"""What the rows of trainings keep, read and written."""

from typing import Any

import pytest

from service.domain.training.paired_vectors import StoredPairs
from service.domain.training.trainings import (
    ListedImages,
    TrainingPhase,
    TrainingRequest,
    phases_of,
    training_phase,
)
from service.tables import Job

ASKED = {
    "from_version": "v1",
    "from_version_id": 3,
    "to_version": "v2",
    "to_version_id": 4,
    "with_g": True,
    "dataset": None,
    "options": {"seed": 0, "epochs": 7},
    "chained_transformations": [5, 6],
}
PAIRS = {**ASKED, "rows": 200, "sha256": "ab"}
IMAGES = {**ASKED, "dataset": "cars", "images": 300, "listing_sha256": "cd"}


@pytest.mark.parametrize(
    ("row", "learns_from"),
    [(PAIRS, StoredPairs(200, "ab")), (IMAGES, ListedImages(300, "cd"))],
    ids=["pairs", "images"],
)
def test_a_request_is_read_and_written_with_the_keys_of_the_row(
    row: dict[str, Any], learns_from: StoredPairs | ListedImages
) -> None:
    request = TrainingRequest.of(Job(request=row))

    assert request.learns_from == learns_from
    assert (request.from_version, request.to_version_id, request.options["epochs"]) == ("v1", 4, 7)
    assert request.chained_transformations == (5, 6)
    assert request.to_json() == row


def test_the_phases_of_a_row_are_read_by_their_names() -> None:
    row = {"done": 5, "rate": 2.0, "unit": "epochs", "total": 10, "seconds": 2.5, "eta_seconds": 2.5}

    phases = phases_of(Job(progress={"training_h": row}))

    assert phases == {"training_h": TrainingPhase(5, 10, "epochs", 2.0, 2.5, 2.5)}


@pytest.mark.parametrize(
    ("done", "seconds", "rate", "eta_seconds"), [(0, 9.0, None, None), (5, 2.5, 2.0, 2.5), (10, 5.0, 2.0, 0.0)]
)
def test_the_rate_of_a_training_is_of_the_time_that_was_worked(
    done: int, seconds: float, rate: float | None, eta_seconds: float | None
) -> None:
    phase = training_phase(done, 10, "epochs", seconds)

    assert phase == TrainingPhase(done, 10, "epochs", rate, eta_seconds, seconds)
