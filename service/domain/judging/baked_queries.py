"""What is noted of image queries that both generations are asked while an upgrade is baked.

Every API process adds rows, in transactions of their own, and a worker reads their figures. The newest few thousand of
an upgrade stay while it is baked, and none after.
"""

from dataclasses import asdict, dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.domain.guardrails import Bake, Figures
from service.domain.upgrade_state import State

KEPT = 5_000


@dataclass(frozen=True)
class Compared:
    """One query: whether a generation failed, how long it took, and how many of the ten nearest it found; overlap: the
    share of those before that are among those after, None where there were none before."""

    failed_before: bool
    failed_after: bool
    seconds_before: float
    seconds_after: float
    found_before: int
    found_after: int
    overlap: float | None


# An upgrade that is not baked any more gets nothing.
_WRITE = f"""
INSERT INTO baked_queries (upgrade_id, failed_before, failed_after, seconds_before, seconds_after, found_before,
  found_after, overlap)
SELECT id, :failed_before, :failed_after, :seconds_before, :seconds_after, :found_before, :found_after,
  CAST(:overlap AS float8)
FROM upgrades
WHERE id = :upgrade_id AND state = '{State.LIVE}' AND bake_ends_at > now() AND bake_result IS NULL
FOR KEY SHARE
"""
_REMOVE_BEYOND = """
DELETE FROM baked_queries WHERE upgrade_id = :upgrade_id AND id <= (
  SELECT id FROM baked_queries WHERE upgrade_id = :upgrade_id ORDER BY id DESC OFFSET :kept LIMIT 1)
"""
_FIGURES = """
WITH
  asked AS (SELECT *, NOT (failed_before OR failed_after) AS timed FROM baked_queries WHERE upgrade_id = :upgrade_id),
  p99 AS (SELECT
    percentile_disc(0.99) WITHIN GROUP (ORDER BY seconds_before) FILTER (WHERE timed) AS before,
    percentile_disc(0.99) WITHIN GROUP (ORDER BY seconds_after) FILTER (WHERE timed) AS after FROM asked)
SELECT count(*) AS n,
  count(*) FILTER (WHERE failed_after AND NOT failed_before) AS failed,
  count(*) FILTER (WHERE timed AND found_after = 0 AND found_before > 0) AS empty,
  count(*) FILTER (WHERE timed) AS timed,
  count(*) FILTER (WHERE timed AND seconds_after > CAST(:ratio AS float8) * p99.before) AS slow,
  min(p99.before) AS p99_before, min(p99.after) AS p99_after,
  count(overlap) AS compared, avg(overlap) AS overlap, stddev_samp(overlap) AS overlap_deviation
FROM asked, p99
"""


def note_compared(session: Session, upgrade_id: int, compared: Compared) -> None:
    """Note what became of a query; nothing where the upgrade is not baked any more."""
    session.execute(text(_WRITE), {"upgrade_id": upgrade_id, **asdict(compared)})


def figures_of(session: Session, upgrade_id: int, bake: Bake) -> Figures:
    """Return what is known of an upgrade's newest queries."""
    session.execute(text(_REMOVE_BEYOND), {"upgrade_id": upgrade_id, "kept": KEPT})
    row = session.execute(text(_FIGURES), {"upgrade_id": upgrade_id, "ratio": bake.guardrails.p99_ratio}).one()
    return Figures(**row._mapping)


def forget_compared(session: Session, upgrade_id: int) -> None:
    """Remove what was noted of an upgrade."""
    session.execute(text("DELETE FROM baked_queries WHERE upgrade_id = :id"), {"id": upgrade_id})
