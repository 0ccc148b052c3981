"""Every setting of the service and its workers. Nothing else reads a setting from the environment: `Settings` is built
once by an entry point (`service.cli`, `workers.app`) and passed on; tests construct it directly."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from variables prefixed `GALLERY_` (for example `GALLERY_DATABASE_URL`)."""

    model_config = SettingsConfigDict(env_prefix="GALLERY_")

    # Where things are kept. An unset URL means the embedded server inside `data`.
    data: Path = Path("data")
    database_url: str | None = None
    broker_url: str | None = None
    blob_url: str | None = None
    # A Milvus server, or a path ending in .db (Milvus Lite, in one process only). Unset, indexes are FAISS files.
    index_url: str | None = Field(default=None, pattern=r"^(https?://.+|.+\.db)$")

    # What is accepted.
    trust_torchscript: bool = False
    max_image_pixels: int = 64_000_000
    max_files_per_request: int = 10_000
    max_image_bytes: int = 64 * 2**20
    max_request_bytes: int = 4 * 2**30
    max_json_bytes: int = 32 * 2**20
    max_metadata_bytes: int = 64 * 2**10

    # Training. Data sets are read below this folder only; unset, none is. Features are held in memory, up to this size.
    datasets: Path | None = None
    max_training_bytes: int = Field(default=4 * 2**30, ge=1)

    # Networks.
    device: str = "cpu"
    # The number format of h and g; unset, a short trial finds out what the device is fastest in.
    precision: Literal["float32", "bfloat16"] | None = None
    encode_batch_items: int = 256

    # Image queries: how many run at once, of the 40 threads that answer requests, and how many more wait for a turn.
    queries_at_once: int = Field(default=32, ge=1, le=36)
    queries_waiting: int = Field(default=256, ge=0)
    # Those that run share batches of the encoder, of at most this many images; with 1, each is encoded by itself. How
    # long a batch that is not full waits for queries whose images are being preprocessed.
    query_batch_images: int = Field(default=32, ge=1)
    query_batch_wait_ms: float = Field(default=0.0, ge=0)

    # Upgrades.
    batch_items: int = Field(default=20_000, ge=1)
    batches_at_once: int = Field(default=4, ge=1)  # in one worker; half of them compute, the others read and write
    rows_per_chunk: int = Field(default=1_024, ge=1)
    lease_seconds: float = Field(default=30.0, gt=0)
    max_batch_attempts: int = Field(default=5, ge=1)
    retry_base_seconds: float = Field(default=1.0, ge=0)
    cutover_max_changes: int = Field(default=2_000, ge=0)
    removal_wait_seconds: float = 30.0
    task_slice_seconds: float = 5.0
    sweep_every_seconds: float = 2.0
    cutover_wait_seconds: float = 60.0

    # For tests only: the name of a point at which the process dies (see `service.crash_points`).
    crash_at: str | None = None

    # Index. From this many rows on, walking a graph beats scanning (measured: docs/search.md).
    flat_below_rows: int = Field(default=50_000, ge=0)
    # Index files of active generations, and of those kept for a rollback: from how many rows on there is one; and after
    # how many changed items, which are also at least this share of its rows, a new one is built.
    index_file_from_rows: int = Field(default=50_000, ge=1)
    rebuild_after_changes: int = Field(default=10_000, ge=1)
    rebuild_after_share: float = Field(default=0.1, ge=0)
    rebuild_pause_seconds: float = Field(default=300.0, ge=0)  # after a build that failed or whose worker died
    follow_every_seconds: float = 0.5
    # How many queries, or else rows, of a gallery an index's width is chosen by; and how many queries are kept for it.
    recall_sample_items: int = Field(default=200, ge=1)
    query_sample_items: int = Field(default=1_000, ge=0)
    # How many items that both model versions encoded an upgrade is judged by at most.
    evaluation_sample_items: int = Field(default=5_000, ge=2)
    # Which share of image queries an open upgrade's candidate is asked too, off their path, and how many a second at
    # most, per process; and how many of them are kept for each gallery and pair of model versions.
    shadow_share: float = Field(default=0.01, ge=0, le=1)
    shadow_per_second: int = Field(default=5, ge=1)
    shadowed_query_items: int = Field(default=1_000, ge=1)

    @property
    def blob_location(self) -> str:
        """The fsspec URL of the blob store."""
        return self.blob_url or f"file://{(self.data / 'blobs').resolve()}"

    def environment(self) -> dict[str, str]:
        """The variables that make another process build an equal `Settings`."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {f"GALLERY_{name.upper()}": str(value) for name, value in values.items()}
