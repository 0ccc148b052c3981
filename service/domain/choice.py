"""Which transformation is taken, of several between two model versions: the one rule for whatever finds its own way.

The one that is named, if one is; else the one that is the default of its pair of versions, the tenant's own before
the one that is shared by all; else the only one that is sound. Sound is what its own held-out metrics do not speak
against: a transformation that is worse than giving every row the mean, or than its own linear map, is taken only where
it is named. Of several that are sound none is better by itself, and their owner is asked.
"""

from collections.abc import Sequence

from service.errors import Conflict
from service.tables import Transformation


class AmbiguousTransformation(Conflict):
    """Several transformations lead between two versions, and nothing says which one is meant."""


class NoSoundTransformation(Conflict):
    """What leads between two versions is worse, by its own metrics, than having no network at all."""


def choose(
    candidates: Sequence[Transformation],
    way: str,
    named: int | None = None,
    otherwise: str = "name one as `transformation`",
) -> Transformation:
    """Return the transformation to take of some between the same versions, of which `named` is meant if it is there;
    `way` has the versions in words, and `otherwise` what can be done instead of making one the default.

    Raises `AmbiguousTransformation` and `NoSoundTransformation` (409) with the metrics of each.
    """
    meant = next((candidate for candidate in candidates if candidate.id == named), None)
    if meant is not None:
        return meant
    sound = [candidate for candidate in candidates if unsoundness(candidate) is None]
    defaults = [candidate for candidate in sound if candidate.is_default]
    chosen = [candidate for candidate in defaults if candidate.tenant is not None] or defaults or sound
    if len(chosen) == 1:
        return chosen[0]

    errors = [_described(candidate) for candidate in sorted(candidates, key=lambda candidate: candidate.id)]
    if chosen:
        ids = ", ".join(str(candidate.id) for candidate in sorted(chosen, key=lambda candidate: candidate.id))
        raise AmbiguousTransformation(
            f"{len(chosen)} transformations lead {way} ({ids}), and none is their default: {otherwise}, or make"
            ' one the default: PATCH /v1/transformations/{id} {"default": true}.',
            errors,
        )
    why = "; ".join(f"transformation {candidate.id} {unsoundness(candidate)}" for candidate in candidates)
    raise NoSoundTransformation(
        f"Nothing sound leads {way}: by its held-out metrics, {why}. Train another one, or name it as `transformation`"
        " to take it all the same.",
        errors,
    )


def unsoundness(transformation: Transformation) -> str | None:
    """Return what a transformation's held-out metrics say against it, None if nothing, or where they are not known.

    One that draws items to the means of their classes is not held against its linear map: it trades error for that.
    """
    found = _errors_of(transformation, "h")
    if found is None:
        return None
    error, of_the_mean = found
    if error >= of_the_mean:
        return f"is no better than giving every row the mean (explained variance {_explained(found):.3g})"
    linear = _errors_of(transformation, "linear")
    if linear is not None and error > linear[0] and not transformation.draws_to_classes:
        return f"is worse than its own linear map (squared error {error:.6g} against {linear[0]:.6g})"
    return None


def _errors_of(transformation: Transformation, part: str) -> tuple[float, float] | None:
    """Return the mean squared errors of a part and of the mean, on held-out rows; None where they are not known."""
    metrics = (transformation.metrics or {}).get(part)
    if not isinstance(metrics, dict):
        return None
    error, of_the_mean = metrics.get("mean_squared_error"), metrics.get("mean_predictor_error")
    return None if error is None or of_the_mean is None else (float(error), float(of_the_mean))


def _explained(errors: tuple[float, float]) -> float:
    error, of_the_mean = errors
    return 1 - error / of_the_mean if of_the_mean > 0 else 0.0


def _described(transformation: Transformation) -> dict[str, object]:
    errors, linear = _errors_of(transformation, "h"), _errors_of(transformation, "linear")
    return {
        "transformation": transformation.id,
        "default": transformation.is_default,
        "explained_variance": None if errors is None else _explained(errors),
        "mean_squared_error": None if errors is None else errors[0],
        "linear_mean_squared_error": None if linear is None else linear[0],
        "metrics": transformation.metrics,
        "detail": unsoundness(transformation) or "nothing speaks against it",
    }
