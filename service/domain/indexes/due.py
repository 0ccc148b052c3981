"""When a complete generation, the active one or one that is kept for a rollback, gets a new index file.

Rows that changed since a file was built are searched exhaustively or skipped one by one, in every API process. A file
is due when they are many, in number and against the rows in the file, when a large generation has none, or when the
gallery asks for another kind of index than the file is of.

How wide a file is searched is chosen by rows where few queries were kept, as for a next generation, which nobody has
asked anything. Such a file is due once enough queries of its model version are kept, and one whose width few queries
chose, once there are twice as many: then only the width is chosen anew.

How many changed is bounded by how far the revision has moved, so that most generations are decided without a look at
their items; a count ends at the number that makes a file due, and is not repeated before the revision has moved by what
was missing.

Builds do not follow one another without end: after one, its generation rests for as long as it took, and after one that
failed or whose worker died, for `rebuild_pause_seconds` at least.
"""

from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.domain.gallery.generations import GenerationKey
from service.domain.generation_stage import GenerationStage
from service.domain.indexes.query_samples import fewest_queries, full_sample
from service.domain.job_state import JobState
from service.domain.jobs import INDEX_BUILD
from service.settings import Settings

# A job that seems to run and is not renewed is one whose worker died: it counts as failed.
_CANDIDATES = f"""
SELECT n.id, g.id, g.revision, due.since, n.index_sha256 IS NOT NULL, due.changes, why.reason = 'width'
FROM generations n JOIN galleries g ON g.id = n.gallery_id CROSS JOIN LATERAL (
  SELECT CASE n.index_parameters->>'recall_sample' WHEN 'queries'
         THEN (n.index_parameters->>'recall_sample_size')::bigint ELSE 0 END
) asked (queries) CROSS JOIN LATERAL (
  SELECT CASE WHEN n.index_sha256 IS NULL THEN 'no file'
         WHEN g.index NOT IN ('auto', n.index_parameters->>'kind') THEN 'kind'
         WHEN n.index_parameters->>'kind' <> 'flat' AND greatest(:fewest_queries, 2 * asked.queries) <= least(
           :full_sample,
           (SELECT count(*) FROM query_samples q WHERE q.gallery_id = g.id AND q.model_version_id = n.model_version_id)
         ) THEN 'width'
         ELSE 'changes' END
) why (reason) CROSS JOIN LATERAL (
  SELECT CASE why.reason WHEN 'no file' THEN 0 ELSE n.index_revision END,
         CASE why.reason WHEN 'no file' THEN :from_rows
         WHEN 'changes'
         THEN greatest(:after_changes, ceil(:after_share * (n.index_parameters->>'rows')::bigint)::bigint)
         ELSE 0 END
) due (since, changes)
WHERE n.state = '{GenerationStage.COMPLETE}' AND g.revision - due.since >= due.changes
  AND (CAST(:only AS bigint) IS NULL OR n.id = :only)
  AND NOT EXISTS (
    SELECT FROM jobs j WHERE j.gallery_id = g.id AND j.generation_id = n.id AND j.kind = '{INDEX_BUILD}'
      AND j.updated_at + greatest(j.updated_at - j.created_at, CASE
        WHEN j.state IN ('{JobState.FAILED}', '{JobState.RUNNING}')
        THEN make_interval(secs => :pause_seconds) ELSE '0 s' END) > now()
  )
ORDER BY n.id <> g.active_generation_id, n.id
"""

# Of a generation without a file only live items count: they are the rows that its file would have.
_CHANGED = """
SELECT count(*) FROM (
  SELECT FROM items WHERE gallery_id = :gallery_id AND revision > :after AND (:has_file OR deleted_at IS NULL)
  LIMIT :most
) changed
"""


@dataclass(frozen=True)
class DueRebuild:
    """`only_width` when the rows of the file that is there may stay."""

    generation: GenerationKey
    only_width: bool


@dataclass
class Rebuilds:
    """Finds what is due. For a generation of which too little had changed, `not_before` has the first revision of the
    gallery at which it may be enough: every revision changes one item at most."""

    not_before: dict[int, int] = field(default_factory=dict)

    def find_due(self, session: Session, settings: Settings, generation_id: int | None = None) -> DueRebuild | None:
        """Return a generation whose file is due, or that one if its file is; active generations come first."""
        parameters = {
            "from_rows": settings.index_file_from_rows,
            "after_changes": settings.rebuild_after_changes,
            "after_share": settings.rebuild_after_share,
            "pause_seconds": settings.rebuild_pause_seconds,
            "fewest_queries": fewest_queries(settings),
            "full_sample": full_sample(settings),
            "only": generation_id,
        }

        for id_, gallery_id, revision, built_at, has_file, due_changes, only_width in session.execute(
            text(_CANDIDATES), parameters
        ).all():
            if due_changes > 0 and revision < self.not_before.get(id_, 0):
                continue

            since = {"gallery_id": gallery_id, "after": built_at, "has_file": has_file, "most": due_changes}
            changed = session.scalars(text(_CHANGED), since).one()
            if changed >= due_changes:
                return DueRebuild(GenerationKey(gallery_id, id_), only_width)

            self.not_before[id_] = revision + due_changes - changed

        return None
