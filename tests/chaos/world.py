"""The real service that the model-based test drives, in one process and without a thread of its own: two API processes'
applications and one worker, on one database. Nothing happens in them but what a rule asks for.

- Replicas follow when they are told to: their own threads sleep for an hour.
- Nudges go nowhere, unless a rule lets the worker answer them at once.
- Something may happen while images are encoded, or in the middle of a batch: see `Interruption`.
"""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pyarrow as pa
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.app import create_app
from service.blobs import BlobStore
from service.connectors.named import NamedStores
from service.connectors.opening import open_store
from service.db import Database, create_database_engine
from service.domain.gallery.writes import GalleryWriter, NobodyFollows
from service.domain.indexes.choice import choose_engine
from service.image_sources.source import ImageSource
from service.networks.encoders import Encoders, VersionEncoder
from service.networks.transformations import TransformationNetworks
from service.settings import Settings
from service.tables import ModelVersion
from service.vectors.rows import EmbeddingRows, VectorFormat
from tests.chaos.offline import Row, register
from tests.networks import image_bytes
from workers.app import WorkerParts

if TYPE_CHECKING:
    from service.api.dependencies import Parts

MAX_BATCH_ATTEMPTS = 3


class WorkerDied(BaseException):
    """The worker's process ends here; its connections, and so its transactions and locks, end with it."""


@dataclass
class Interruption:
    """What happens once at the next moment of its kind; `happened` tells whether there was one."""

    action: Callable[[], None] | None = None
    happened: bool = False

    def arm(self, action: Callable[[], None]) -> None:
        self.action, self.happened = action, False

    def disarm(self) -> bool:
        self.action = None
        return self.happened

    def strike(self) -> None:
        if self.action is not None:
            action, self.action, self.happened = self.action, None, True
            action()


class InterruptedNetworks(TransformationNetworks):
    """h and g, interrupted after a batch's rows were read and before they are written."""

    def __init__(self, database: Database, blobs: BlobStore, settings: Settings) -> None:
        super().__init__(database, blobs, settings)
        self.interruption = Interruption()
        self.item_ids: list[int] = []

    def transform(self, rows: EmbeddingRows, wanted: VectorFormat, path: tuple[int, ...]) -> EmbeddingRows:
        self.item_ids = rows.item_id.tolist()
        self.interruption.strike()
        return super().transform(rows, wanted, path)


class InterruptedEncoders(Encoders):
    """Encoders, interrupted after an ingest has looked which generations there are and before it writes to them."""

    def __init__(self, blobs: BlobStore, settings: Settings) -> None:
        super().__init__(blobs, settings)
        self.interruption = Interruption()

    def get(self, version: ModelVersion) -> VersionEncoder:
        self.interruption.strike()
        return super().get(version)


@dataclass
class Nudges:
    """A `service.queue.Sender`: messages are kept, or answered at once as if a worker had waited for them."""

    sent: list[int] = field(default_factory=list)
    answer: Callable[[int], None] | None = None

    def send(self, task_name: str, *arguments: int) -> None:
        self.sent.append(arguments[0])
        if self.answer is not None:
            self.answer(arguments[0])


class Api:
    """One API process: it can be restarted, and its replica follows when it is told to."""

    def __init__(self, settings: Settings, nudges: Nudges) -> None:
        self._app = create_app(settings)
        self._settings = settings
        self._nudges = nudges
        self.start()

    def start(self) -> None:
        self.client: httpx.Client = TestClient(self._app)
        self.client.__enter__()
        self.parts: Parts = self._app.state.parts
        self.encoders = InterruptedEncoders(self.parts.blobs, self._settings)
        self._app.state.parts = replace(
            self.parts,
            writer=replace(self.parts.writer, encoders=self.encoders),
            search=replace(self.parts.search, encoders=self.encoders),
        )
        self.parts.database.queue = self._nudges

    def stop(self) -> None:
        self.client.__exit__(None, None, None)

    def follow(self, gallery_id: int) -> None:
        """Do what the replica's own thread does at every interval."""
        self.parts.replicas.refresh(gallery_id, every_generation=True)

    def upload(self, gallery: str, seeds: dict[str, int]) -> httpx.Response:
        """Ingest the image of a seed under each id."""
        files = [("files", (f"{seed}.png", image_bytes(seed), "image/png")) for seed in seeds.values()]
        items = [{"id": id_, "label": f"class {seed % 2}"} for id_, seed in seeds.items()]
        return self.client.post(f"/v1/galleries/{gallery}/images", files=files, data={"items": json.dumps(items)})

    def import_rows(self, gallery: str, version: str, columns: dict[str, dict[str, Row]]) -> httpx.Response:
        """Import rows of a version by prefix (none, or `previous_`) and id."""
        table: dict[str, Any] = {"id": list(columns[""])}
        for prefix, rows in columns.items():
            table[f"{prefix}embedding"] = [row.embedding.tolist() for row in rows.values()]
            sides = [row.side_information.tolist() for row in rows.values() if row.side_information is not None]
            if sides:
                table[f"{prefix}side_information"] = sides
        sink = io.BytesIO()
        arrow = pa.table(table)
        with pa.ipc.new_stream(sink, arrow.schema) as writer:
            writer.write_table(arrow)
        url = f"/v1/galleries/{gallery}/embeddings"
        return self.client.post(url, params={"model_version": version}, content=sink.getvalue())

    def search_image(self, gallery: str, seed: int, generation: str = "active") -> httpx.Response:
        return self.client.post(
            f"/v1/galleries/{gallery}/search",
            params={"generation": generation, "k": 1000},
            content=image_bytes(seed),
            headers={"Content-Type": "image/png"},
        )

    def search_vectors(self, gallery: str, vectors: Iterable[list[float]]) -> httpx.Response:
        body = {"vectors": list(vectors), "k": 1000}
        return self.client.post(f"/v1/galleries/{gallery}/search/vectors", json=body)


class World:
    """Two API processes and a worker, with every version and transformation registered."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(
            update={
                "follow_every_seconds": 3600.0,
                "listen": False,
                "lease_seconds": 3600.0,
                "retry_base_seconds": 0.0,
                "task_slice_seconds": 0.001,
                "cutover_wait_seconds": 0.05,
                "cutover_max_changes": 2,
                "max_batch_attempts": MAX_BATCH_ATTEMPTS,
                "batch_items": 3,
                "rows_per_chunk": 2,
            }
        )
        assert self.settings.database_url is not None
        self.nudges = Nudges()
        self.apis = [Api(self.settings, self.nudges) for _ in range(2)]
        self.worker_nudges = Nudges()
        self.database = Database(create_database_engine(self.settings.database_url, pool_size=4), self.worker_nudges)
        blobs = BlobStore(self.settings.blob_location)
        self.networks = InterruptedNetworks(self.database, blobs, self.settings)
        self.worker = WorkerParts(
            self.settings,
            self.database,
            blobs,
            self.networks,
            choose_engine(self.database, blobs, self.settings),
            GalleryWriter(self.database, Encoders(blobs, self.settings), NobodyFollows(), self.settings),
            ImageSource(self.settings),
            NamedStores({}, open_store),
        )
        self.transformations = register(self.apis[0].client)
        self.galleries = 0

    def close(self) -> None:
        for api in self.apis:
            api.stop()
        self.database.engine.dispose()

    def index_files(self) -> list[str]:
        folder = Path(self.settings.blob_location.removeprefix("file://")) / "indexes"
        return [path.name for path in folder.iterdir()] if folder.exists() else []

    def claimed_batches(self, upgrade_id: int) -> int:
        """Return how many batches are in somebody's hands."""
        query = text("SELECT count(*) FROM upgrade_batches WHERE state = 'claimed' AND upgrade_id = :id")
        with self.database.session_scope() as session:
            return int(session.scalars(query, {"id": upgrade_id}).one())

    def end_leases(self) -> None:
        """Let so much time pass that every lease has ended."""
        query = text("UPDATE upgrade_batches SET lease_expires_at = now() - interval '1 s' WHERE state = 'claimed'")
        with self.database.session_scope() as session:
            session.execute(query)
