"""The path of an upgrade through registered transformations: fewest hops, through g, and which one when several tie."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm import Session

from service.db import Database
from service.domain.choice import AmbiguousTransformation, NoSoundTransformation
from service.domain.gallery.generations import StoredGeneration
from service.domain.generation_stage import GenerationStage
from service.domain.registry.transformations import UnknownTransformation, set_default
from service.domain.upgrade.paths import ErasesItems, FoundLeg, NoPath, find_legs
from service.tables import ModelVersion, Task, Transformation
from service.vectors.rows import VectorFormat

# v3 has no ψ; every other version has one.
SIDE_DIMS = {"v1": 5, "v2": 4, "v3": None, "v4": 3}


class Registry:
    """Versions and transformations as rows, and the questions of an upgrade."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.versions = {
            name: ModelVersion(
                name=name,
                embedding_dim=8,
                side_information_dim=side_dim,
                normalize=False,
                preprocessing={},
                embedding_model_digest="φ",
                embedding_model_kind="onnx",
            )
            for name, side_dim in SIDE_DIMS.items()
        }
        session.add_all(self.versions.values())
        session.flush()

    def transformation(
        self,
        before: str,
        after: str,
        *,
        g: bool,
        classes: int | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> int:
        transformation = Transformation(
            from_version_id=self.versions[before].id,
            to_version_id=self.versions[after].id,
            h_digest="h",
            h_kind="onnx",
            g_digest="g" if g else None,
            architecture={"h": {"kind": "safetensors", "config": {"classes": classes}}},
            metrics=metrics,
        )
        self._session.add(transformation)
        self._session.flush()
        return transformation.id

    def make_default(self, transformation_id: int) -> None:
        set_default(self._session, transformation_id, True)

    def generation(self, id_: int, version: str, *, side_information: bool = True) -> StoredGeneration:
        side_dim = SIDE_DIMS[version] if side_information else None
        return StoredGeneration(
            id_, 1, "l2", self.versions[version], VectorFormat(8, side_dim, "float16"), GenerationStage.COMPLETE
        )

    def legs(
        self,
        to_version: str,
        active: StoredGeneration,
        *retained: StoredGeneration,
        transformation_id: int | None = None,
        task: Task = "instance",
    ) -> list[FoundLeg]:
        return find_legs(self._session, self.versions[to_version], active, retained, transformation_id, task)


@pytest.fixture
def registry(database: Database) -> Iterator[Registry]:
    with database.session_scope() as session:
        yield Registry(session)


def test_a_direct_transformation_is_one_hop(registry: Registry) -> None:
    with_g = registry.transformation("v1", "v2", g=True)
    without_g = registry.transformation("v1", "v3", g=False)
    active = registry.generation(1, "v1")

    assert registry.legs("v2", active) == [FoundLeg(1, (with_g,), gives_side_information=True)]
    assert registry.legs("v3", active) == [FoundLeg(1, (without_g,), gives_side_information=False)]


def test_a_chain_goes_through_the_versions_between_when_they_have_a_g(registry: Registry) -> None:
    first = registry.transformation("v1", "v2", g=True)
    second = registry.transformation("v2", "v4", g=True)
    third = registry.transformation("v4", "v3", g=False)

    assert registry.legs("v3", registry.generation(1, "v1")) == [FoundLeg(1, (first, second, third), False)]


def test_fewest_hops_win_over_newer_transformations(registry: Registry) -> None:
    direct = registry.transformation("v1", "v4", g=False)
    registry.transformation("v1", "v2", g=True)
    registry.transformation("v2", "v4", g=True)

    assert registry.legs("v4", registry.generation(1, "v1")) == [FoundLeg(1, (direct,), False)]


def test_of_several_transformations_none_is_taken_until_one_is_named_or_the_default(registry: Registry) -> None:
    first = registry.transformation("v1", "v2", g=True)
    second = registry.transformation("v1", "v2", g=True)
    onward = registry.transformation("v2", "v4", g=True)
    active = registry.generation(1, "v1")

    for to_version in ("v2", "v4"):
        with pytest.raises(AmbiguousTransformation, match=f"from 'v1' to 'v2' \\({first}, {second}\\)"):
            registry.legs(to_version, active)
    named = [registry.legs(version, active, transformation_id=first)[0] for version in ("v2", "v4")]
    registry.make_default(second)
    by_default = [registry.legs(version, active)[0] for version in ("v2", "v4")]

    assert [leg.transformation_ids for leg in named] == [(first,), (first, onward)]
    assert [leg.transformation_ids for leg in by_default] == [(second,), (second, onward)]


def test_a_default_without_g_does_not_lead_on(registry: Registry) -> None:
    with_g = registry.transformation("v1", "v2", g=True)
    registry.make_default(registry.transformation("v1", "v2", g=False))
    onward = registry.transformation("v2", "v4", g=True)

    assert registry.legs("v4", registry.generation(1, "v1")) == [FoundLeg(1, (with_g, onward), True)]


WORSE_THAN_THE_MEAN = {"h": {"mean_squared_error": 1.2, "mean_predictor_error": 1.0}}
WORSE_THAN_LINEAR = {
    "h": {"mean_squared_error": 0.5, "mean_predictor_error": 1.0},
    "linear": {"mean_squared_error": 0.4, "mean_predictor_error": 1.0},
}
SOUND = {
    "h": {"mean_squared_error": 0.4, "mean_predictor_error": 1.0},
    "linear": {"mean_squared_error": 0.4, "mean_predictor_error": 1.0},
}


@pytest.mark.parametrize("metrics", [WORSE_THAN_THE_MEAN, WORSE_THAN_LINEAR])
def test_what_its_own_metrics_speak_against_is_taken_only_where_it_is_named(
    registry: Registry, metrics: dict[str, Any]
) -> None:
    unsound = registry.transformation("v1", "v2", g=True, metrics=metrics)
    active = registry.generation(1, "v1")

    with pytest.raises(NoSoundTransformation, match=f"transformation {unsound} is") as refusal:
        registry.legs("v2", active)
    named = registry.legs("v2", active, transformation_id=unsound)
    sound = registry.transformation("v1", "v2", g=True, metrics=SOUND)
    newest_is_unsound = registry.transformation("v1", "v2", g=True, metrics=metrics)

    assert refusal.value.errors is not None
    assert refusal.value.errors[0]["transformation"] == unsound
    assert named[0].transformation_ids == (unsound,)
    assert newest_is_unsound > sound
    assert registry.legs("v2", active)[0].transformation_ids == (sound,)


def test_a_longer_way_is_taken_where_the_direct_one_is_unsound(registry: Registry) -> None:
    registry.transformation("v1", "v4", g=True, metrics=WORSE_THAN_THE_MEAN)
    first = registry.transformation("v1", "v2", g=True, metrics=SOUND)
    second = registry.transformation("v2", "v4", g=True)

    assert registry.legs("v4", registry.generation(1, "v1"))[0].transformation_ids == (first, second)


def test_drawing_to_classes_is_not_held_against_its_linear_map(registry: Registry) -> None:
    drawing = registry.transformation("v1", "v2", g=True, classes=3, metrics=WORSE_THAN_LINEAR)

    assert registry.legs("v2", registry.generation(1, "v1"), task="class")[0].transformation_ids == (drawing,)


def test_a_newer_transformation_without_g_does_not_hide_the_one_that_leads_on(registry: Registry) -> None:
    with_g = registry.transformation("v1", "v2", g=True)
    registry.transformation("v1", "v2", g=False)
    onward = registry.transformation("v2", "v3", g=False)

    assert registry.legs("v3", registry.generation(1, "v1")) == [FoundLeg(1, (with_g, onward), False)]


def test_there_is_no_path_against_the_arrow_through_a_missing_g_or_from_rows_without_side_information(
    registry: Registry,
) -> None:
    registry.transformation("v1", "v2", g=False)
    registry.transformation("v2", "v3", g=False)
    registry.transformation("v4", "v1", g=True)

    for to_version, active in (
        ("v4", registry.generation(1, "v1")),
        ("v3", registry.generation(1, "v1")),
        ("v3", registry.generation(1, "v2", side_information=False)),
    ):
        with pytest.raises(NoPath, match=f"from model version '{active.version.name}' to '{to_version}'") as refusal:
            registry.legs(to_version, active)
        assert refusal.value.status_code == 409


def test_a_version_without_side_information_can_be_left_by_h_alone(registry: Registry) -> None:
    onward = registry.transformation("v3", "v4", g=True)

    assert registry.legs("v4", registry.generation(1, "v3")) == [FoundLeg(1, (onward,), True)]


def test_circles_end(registry: Registry) -> None:
    registry.transformation("v1", "v2", g=True)
    registry.transformation("v2", "v1", g=True)

    with pytest.raises(NoPath):
        registry.legs("v4", registry.generation(1, "v1"))


def test_a_retained_generation_with_a_shorter_path_comes_first_and_the_active_one_second(registry: Registry) -> None:
    direct = registry.transformation("v1", "v4", g=True)
    back = registry.transformation("v2", "v1", g=True)
    retained, active = registry.generation(1, "v1"), registry.generation(2, "v2")

    assert registry.legs("v4", active, retained) == [FoundLeg(1, (direct,), True), FoundLeg(2, (back, direct), True)]


def test_the_active_generation_alone_is_read_when_its_path_is_as_short(registry: Registry) -> None:
    registry.transformation("v1", "v4", g=True)
    from_active = registry.transformation("v2", "v4", g=True)
    retained, active = registry.generation(1, "v1"), registry.generation(2, "v2")

    assert registry.legs("v4", active, retained) == [FoundLeg(2, (from_active,), True)]


def test_a_retained_generation_alone_is_read_when_the_active_one_has_no_path(registry: Registry) -> None:
    direct = registry.transformation("v1", "v4", g=True)

    legs = registry.legs("v4", registry.generation(2, "v2"), registry.generation(1, "v1"))

    assert legs == [FoundLeg(1, (direct,), True)]


def test_two_legs_that_disagree_on_side_information_become_the_active_generations_one(registry: Registry) -> None:
    registry.transformation("v1", "v4", g=False)
    middle = registry.transformation("v2", "v3", g=False)
    onward = registry.transformation("v3", "v4", g=True)
    retained, active = registry.generation(1, "v1"), registry.generation(2, "v2")

    assert registry.legs("v4", active, retained) == [FoundLeg(2, (middle, onward), True)]


def test_the_transformation_asked_for_is_the_only_one_used(registry: Registry) -> None:
    asked = registry.transformation("v1", "v2", g=False)
    registry.transformation("v1", "v2", g=True)
    other = registry.transformation("v2", "v4", g=True)
    active = registry.generation(1, "v1")

    assert registry.legs("v2", active, transformation_id=asked) == [FoundLeg(1, (asked,), False)]
    with pytest.raises(NoPath):
        registry.legs("v2", active, transformation_id=other)
    with pytest.raises(UnknownTransformation) as refusal:
        registry.legs("v2", active, transformation_id=999)
    assert refusal.value.status_code == 404


@pytest.mark.parametrize("asked_for", [True, False])
def test_items_are_not_drawn_to_classes_in_a_gallery_that_is_searched_for_items(
    registry: Registry, asked_for: bool
) -> None:
    drawing = registry.transformation("v1", "v2", g=True, classes=10)
    active, asked = registry.generation(1, "v1"), drawing if asked_for else None

    by_class = registry.legs("v2", active, transformation_id=asked, task="class")

    assert by_class == [FoundLeg(1, (drawing,), gives_side_information=True)]
    with pytest.raises(ErasesItems, match=f"Transformation {drawing} draws items to the means of their classes"):
        registry.legs("v2", active, transformation_id=asked)


def test_an_older_or_longer_way_that_keeps_items_apart_is_taken_instead(registry: Registry) -> None:
    older = registry.transformation("v1", "v2", g=True)
    registry.transformation("v1", "v2", g=True, classes=10)
    onward = registry.transformation("v2", "v4", g=False)
    registry.transformation("v1", "v4", g=False, classes=10)
    active = registry.generation(1, "v1")

    assert registry.legs("v2", active) == [FoundLeg(1, (older,), gives_side_information=True)]
    assert registry.legs("v4", active) == [FoundLeg(1, (older, onward), gives_side_information=False)]


def test_a_transformation_that_leads_elsewhere_is_not_blamed_for_a_missing_path(registry: Registry) -> None:
    elsewhere = registry.transformation("v2", "v4", g=True, classes=10)
    active = registry.generation(1, "v1")

    for asked in (None, elsewhere):
        with pytest.raises(NoPath):
            registry.legs("v4", active, transformation_id=asked)


def test_the_transformation_on_the_way_that_draws_items_to_classes_is_named(registry: Registry) -> None:
    registry.transformation("v1", "v2", g=True)
    drawing = registry.transformation("v2", "v4", g=False, classes=10)
    registry.transformation("v4", "v1", g=True, classes=10)

    with pytest.raises(ErasesItems, match=f"Transformation {drawing} draws"):
        registry.legs("v4", registry.generation(1, "v1"))


def test_of_a_retained_generation_too_only_what_keeps_items_apart_is_taken(registry: Registry) -> None:
    drawing = registry.transformation("v1", "v4", g=True, classes=10)
    onward = registry.transformation("v2", "v4", g=True)
    registry.transformation("v2", "v1", g=True, classes=10)
    retained, active = registry.generation(1, "v1"), registry.generation(2, "v2")

    assert registry.legs("v4", active, retained) == [FoundLeg(2, (onward,), gives_side_information=True)]
    with pytest.raises(ErasesItems, match=f"Transformation {drawing} draws"):
        registry.legs("v4", active, retained, transformation_id=drawing)
