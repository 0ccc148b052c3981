"""What the sources of both engines share, beside indexes: which generations there are, and their encoders."""

from sqlalchemy import or_, select

from service import logs
from service.db import Database
from service.domain.generation_stage import STORED, GenerationStage
from service.errors import GalleryError
from service.index.served import GalleryState, GenerationState
from service.networks.encoders import Encoders
from service.tables import Gallery, Generation, ModelVersion

events = logs.Events(__name__)

_STATES = (
    select(
        Gallery.id,
        Gallery.revision,
        Gallery.active_generation_id,
        Generation.id,
        ModelVersion.name,
        Generation.state,
        Generation.index_sha256,
    )
    .join(Generation, Generation.gallery_id == Gallery.id)
    .join(ModelVersion, ModelVersion.id == Generation.model_version_id)
    .where(
        Generation.state.in_(STORED),
        or_(Generation.state == GenerationStage.COMPLETE, Generation.index_name.is_not(None)),
    )
    .order_by(Gallery.id, Generation.id)
)


def read_states(database: Database, only: int | None = None) -> list[GalleryState]:
    """Return every gallery's state, or one's."""
    with database.session_scope() as session:
        rows = session.execute(_STATES if only is None else _STATES.where(Gallery.id == only)).all()
    found: dict[int, GalleryState] = {}
    for gallery_id, revision, active_id, generation_id, version_name, state, sha256 in rows:
        assert active_id is not None  # from the transaction on that creates the gallery
        generation = GenerationState(generation_id, version_name, state is GenerationStage.BUILDING, sha256)
        before = found[gallery_id].generations if gallery_id in found else ()
        found[gallery_id] = GalleryState(gallery_id, revision, active_id, (*before, generation))
    return list(found.values())


def warm(encoders: Encoders, version: ModelVersion) -> None:
    """Load the encoder now, if there is one, so that no query waits for it; one that cannot be loaded fails its own
    queries."""
    if not version.has_networks:
        return
    try:
        encoders.get(version)
    except GalleryError as error:
        events.warning("replica.encoder_unusable", model_version=version.name, error=error.message)
