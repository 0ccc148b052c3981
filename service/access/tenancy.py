"""What whoever is served may see: what is of its tenant, or shared by all, and of galleries those that its key names.

Rows are looked up by name or by id in a few functions of the domain (`get_gallery`, `find_serving`, `get_version`,
`get_transformation`, `get_job`, `get_upgrade`, `get_backfill`, `get_external_upgrade`) and listed in as many; the
conditions they put are here, and everything else follows ids from what these gave. What is another tenant's is not
there: 404, and so is by its id what is of a gallery whose name the key's patterns leave out. Such a name is refused,
whether there is a gallery of it or not: 403.

Who is bound to no tenant (`identity.NOBODY`) sees every row by its id; a name is then one of the default tenant.
"""

import re

from sqlalchemy import ColumnElement, and_, false, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session

from service import identity
from service.errors import Forbidden
from service.identity import EVERY_GALLERY, NOBODY
from service.tables import Gallery, Job, ModelVersion, Transformation


class NotYourGallery(Forbidden):
    """The key is for other galleries."""


class SharedByAll(Forbidden):
    """What is shared by all tenants is changed by an operator alone."""


def own(tenant: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The rows, of a table that has a tenant in each, that whoever is served may see."""
    who = identity.current.get()
    return true() if who is NOBODY else tenant == who.tenant


def own_or_shared(table: type[ModelVersion] | type[Transformation]) -> ColumnElement[bool]:
    """The networks that whoever is served may see."""
    who = identity.current.get()
    return true() if who is NOBODY else or_(table.tenant == who.tenant, table.tenant.is_(None))


def version_named(name: str) -> ColumnElement[bool]:
    """The model version that the name means: the tenant's own, or the one that is shared; never are there both."""
    tenant = ModelVersion.tenant
    return and_(ModelVersion.name == name, or_(tenant == identity.current.get().tenant, tenant.is_(None)))


def gallery_named(name: str) -> ColumnElement[bool]:
    """The gallery that the name means. Raises `NotYourGallery` (403)."""
    check_gallery_name(name)
    return and_(Gallery.name == name, Gallery.tenant == identity.current.get().tenant)


def own_galleries() -> ColumnElement[bool]:
    """The galleries that whoever is served may see."""
    patterns = identity.current.get().galleries
    if patterns == EVERY_GALLERY:
        return own(Gallery.tenant)
    named = [Gallery.name.regexp_match(_expression(pattern)) for pattern in patterns]
    return and_(own(Gallery.tenant), or_(false(), *named))


def sees_gallery(session: Session, gallery_id: int) -> bool:
    """Whether whoever is served may know of what is the gallery's."""
    if identity.current.get() is NOBODY:
        return True
    return session.scalar(select(Gallery.id).where(Gallery.id == gallery_id, own_galleries())) is not None


def own_jobs() -> ColumnElement[bool]:
    """The jobs that whoever is served may see: those of its galleries, and its tenant's that are of none. An erasure
    may be of a gallery that is gone, and is seen by keys for all galleries alone."""
    if identity.current.get().galleries == EVERY_GALLERY:
        return own(Job.tenant)
    of_a_gallery = Job.gallery_id.in_(select(Gallery.id).where(own_galleries()))
    of_none = and_(Job.gallery_id.is_(None), Job.kind != "erasure")
    return and_(own(Job.tenant), or_(of_none, of_a_gallery))


def sees_job(session: Session, job: Job) -> bool:
    """Whether whoever is served may know of the job."""
    return session.scalar(select(Job.id).where(Job.id == job.id, own_jobs())) is not None


def names_gallery(name: str) -> bool:
    """Whether a pattern of the key matches the name."""
    patterns = identity.current.get().galleries
    return patterns == EVERY_GALLERY or any(re.search(_expression(pattern), name) for pattern in patterns)


def check_gallery_name(name: str) -> None:
    """Raise `NotYourGallery` (403) unless a pattern of the key matches the name."""
    if not names_gallery(name):
        patterns = identity.current.get().galleries
        raise NotYourGallery(f"The key is for galleries named {', '.join(patterns)}; {name!r} is none of them.")


def check_may_change(row: ModelVersion | Transformation) -> None:
    """Raise `SharedByAll` (403) for a network that is shared, unless an operator is served."""
    if row.tenant is None:
        check_may_share()


def check_may_share() -> None:
    """Raise `SharedByAll` (403) unless an operator is served."""
    who = identity.current.get()
    if who is not NOBODY and not who.is_operator:
        raise SharedByAll("What all tenants share is made and changed by an admin of the default tenant alone.")


def _expression(pattern: str) -> str:
    """Return a pattern of names as a regular expression that Python and PostgreSQL read alike."""
    return f"^{pattern.replace('.', '[.]').replace('*', '.*').replace('?', '.')}$"
