"""Named points between the numbered steps of the engine at which a test makes a process die, as if by SIGKILL.

Armed by `GALLERY_CRASH_AT=<name>`; in a process that is not armed, a point does nothing. The names are listed where
the steps are: in `service.domain.upgrade` (`batches`, `cutover`, `guarding`, `smoothing`),
`service.domain.backfill.work`, `service.domain.external` (`planning`, `ranges`, `actions`), `service.domain.indexes`
(`faiss_engine`, `milvus_engine`, `removal`), `service.domain.ingest.batches`, `service.domain.erasure.work`,
`service.connectors`, `service.index.files`, `service.audit`, and in `workers` (`upgrading`, `upgrade_batches`,
`connecting`). The tests in `tests/chaos`, those of other stores' upgrades, and that of the audit, die at each of them.
"""

import os

_armed: str | None = None


def arm(name: str | None) -> None:
    """Make `crash_point(name)` end this process."""
    global _armed  # one per process, set at its start
    _armed = name


def crash_point(name: str) -> None:
    """End the process here, without any clean-up, if a test asked for it."""
    if name == _armed:
        os._exit(137)
