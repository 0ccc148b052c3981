"""Every setting of the service and its workers. Nothing else reads a setting from the environment: `Settings` is built
once by an entry point (`service.cli`, `workers.app`) and passed on; tests construct it directly."""

import ipaddress
import json
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.identity import DEFAULT_TENANT
from service.logs import LogFormat


class Rates(BaseModel):
    """How much may be asked for in a time; what is None is without bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    searches_per_second: int | None = Field(default=None, ge=1)
    images_per_minute: int | None = Field(default=None, ge=1)


class Quotas(Rates):
    """How much a tenant may have: live items, bytes of its generations' tables, upgrades that are open at once, and
    bytes of the features that its trainings hold."""

    items: int | None = Field(default=None, ge=0)
    bytes: int | None = Field(default=None, ge=0)
    open_upgrades: int | None = Field(default=None, ge=0)
    training_bytes: int | None = Field(default=None, ge=0)


class StoreSetting(BaseModel):
    """Where a gallery in another store is, and which tenants may upgrade it; a URL alone is the default tenant's."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(repr=False, min_length=1)
    tenants: tuple[str, ...] = (DEFAULT_TENANT,)

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_url(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value


class Settings(BaseSettings):
    """Read from variables prefixed `GALLERY_` (for example `GALLERY_DATABASE_URL`)."""

    model_config = SettingsConfigDict(env_prefix="GALLERY_", hide_input_in_errors=True)  # URLs have passwords

    # Where things are kept. An unset URL means the embedded server inside `data`.
    data: Path = Path("data")
    database_url: str | None = None
    broker_url: str | None = None
    blob_url: str | None = None
    # A Milvus server, or a path ending in .db (Milvus Lite, in one process only). Unset, indexes are FAISS files.
    index_url: str | None = Field(default=None, pattern=r"^(https?://.+|.+\.db)$")

    # Who may ask: whoever has a key (on), or anyone (off). Unset, `serve` and `api` need keys unless the address that
    # they listen on is this machine's own and no proxy is named below. `admin_key` is a key that may do everything and
    # has no row.
    auth: Literal["on", "off"] | None = None
    admin_key: str = Field(default="", repr=False, pattern=r"^(gu_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{43})?$")

    # What each tenant may have, in JSON; what single ones may have instead, by their names; and what each key may.
    quotas: Quotas = Quotas()
    tenant_quotas: dict[str, Quotas] = Field(default_factory=dict)
    key_rates: Rates = Rates()

    # How the API is reached: from pages of which other origins, by commas, or from all (*); below which path of a
    # proxy; by which proxies, of which X-Forwarded-Proto, -For and -Prefix are believed (addresses and networks, by
    # commas); and how long a connection without requests stays open, which is longer than proxies keep theirs.
    cors_origins: str = ""
    allowed_hosts: str = ""  # names by which the API is reached, by commas, besides localhost and addresses; * for any
    root_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    trusted_proxies: str = ""
    keep_alive_seconds: int = Field(default=75, ge=1)

    # How many API processes `api` and `serve` start on one port. What is said below to be of a process, each has.
    processes: int = Field(default=1, ge=1, le=256)

    # By which records of upgrades are signed: the base64 of an Ed25519 key's 32 bytes (`gallery-upgrade record key`).
    signing_key: str | None = Field(default=None, repr=False, pattern=r"^[A-Za-z0-9+/]{43}=$")

    # What is accepted; and what an ONNX network may take, in a process of its own, to be opened and at each run.
    trust_torchscript: bool = False
    network_seconds: float = Field(default=60.0, gt=0)
    network_memory_bytes: int = Field(default=4 * 2**30, ge=2**20)
    max_image_pixels: int = 64_000_000
    # How many bytes of decoded images a process holds at a time, and how long an image waits for others to be done.
    decoded_bytes: int = Field(default=1536 * 2**20, ge=2**20)
    decoded_wait_seconds: float = Field(default=10.0, ge=0)
    max_files_per_request: int = 10_000
    max_image_bytes: int = 64 * 2**20
    max_request_bytes: int = 4 * 2**30
    # Of a table of vectors: its rows, and what they take once they are read.
    max_table_rows: int = Field(default=1_000_000, ge=1)
    max_table_bytes: int = Field(default=2**30, ge=1)
    max_json_bytes: int = 32 * 2**20
    max_metadata_bytes: int = 64 * 2**10

    # Images that requests only name: the prefixes below which they are read, separated by spaces (file:///images/,
    # s3://bucket/cats/, https://host/); by default none is read. How long one may take, and how many a worker reads at
    # once.
    images: str = ""
    image_read_seconds: float = Field(default=30.0, gt=0)
    image_reads_at_once: int = Field(default=8, ge=1)

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

    # Exports: how many run at once in one process, each on a database connection of its own; and how long one waits for
    # a client that takes nothing.
    exports_at_once: int = Field(default=4, ge=1, le=16)
    export_stalled_after_seconds: float = Field(default=60.0, gt=0)

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

    # Backfills: how many items are encoded in one transaction, and how long a client may take for the images that it
    # leased.
    backfill_batch_items: int = Field(default=64, ge=1)
    backfill_lease_seconds: float = Field(default=300.0, gt=0)

    # For tests only: the name of a point at which the process dies (see `service.crash_points`).
    crash_at: str | None = None

    # Galleries in other stores that may be upgraded there: a JSON object of names with URLs, which have passwords and
    # are shown nowhere; or with {"url": …, "tenants": […]}, since a store is the default tenant's unless it says whose.
    # How long an upgrade that is ready waits before it reads a store anew that does not say what was written.
    stores: dict[str, StoreSetting] = Field(default_factory=dict, repr=False)
    external_pass_every_seconds: float = Field(default=600.0, ge=0)

    # Index. From this many rows on, walking a graph beats scanning (measured: docs/search.md).
    flat_below_rows: int = Field(default=50_000, ge=0)
    # Index files of active generations, and of those kept for a rollback: from how many rows on there is one; and after
    # how many changed items, which are also at least this share of its rows, a new one is built.
    index_file_from_rows: int = Field(default=50_000, ge=1)
    rebuild_after_changes: int = Field(default=10_000, ge=1)
    rebuild_after_share: float = Field(default=0.1, ge=0)
    rebuild_pause_seconds: float = Field(default=300.0, ge=0)  # after a build that failed or whose worker died
    follow_every_seconds: float = 0.5
    # Whether PostgreSQL also tells of changes at once; not through a pooler that lends connections per transaction.
    listen: bool = True
    # Of the data folder's disk, where the database or the blob store is on it: with less free, nothing is stored.
    disk_reserve_bytes: int = Field(default=512 * 2**20, ge=0)
    # Of a process's HTTP server: connections at once, no more than half the descriptors that it may have; within how
    # many seconds the headers of a request come; and in how many its body gets on.
    max_connections: int = Field(default=1_000, ge=1)
    header_seconds: float = Field(default=30.0, gt=0)
    body_seconds: float = Field(default=60.0, gt=0)
    max_event_streams: int = Field(default=200, ge=1)  # of server-sent events, per process
    # How many queries, or else rows, of a gallery an index's width is chosen by; and how many queries are kept for it.
    recall_sample_items: int = Field(default=200, ge=1)
    query_sample_items: int = Field(default=1_000, ge=0)
    # How many items that both model versions encoded an upgrade is judged by at most.
    evaluation_sample_items: int = Field(default=5_000, ge=2)
    # How much of what answers say of items (id, label, metadata, ...) an API process keeps between queries.
    described_items_bytes: int = Field(default=128 * 2**20, ge=0)
    # Which share of image queries an open upgrade's candidate is asked too, off their path, and how many a second at
    # most, per process; and how many of them are kept for each gallery and pair of model versions.
    shadow_share: float = Field(default=0.01, ge=0, le=1)
    shadow_per_second: int = Field(default=5, ge=1)
    shadowed_query_items: int = Field(default=1_000, ge=1)
    # For how long what is kept of a user's query is kept at most: samples of queries, and shadowed ones.
    query_retention_days: float = Field(default=30.0, gt=0)
    # How many of each gallery's probe images an API process encodes again, when it starts and every so many seconds.
    probe_check_images: int = Field(default=8, ge=1)
    probe_check_every_seconds: float = Field(default=3_600.0, gt=0)

    # How log lines are written: for people, or one JSON object each.
    log_format: LogFormat = "text"
    # Metrics: every so many seconds the rows are read for them (0: never); and how many galleries have labels of their
    # own there, the oldest ones. On which port a worker serves its own: 0 for any, which its log names; unset, on none.
    # API processes serve theirs at `/metrics`; with a port here on that too, and of several the first one on this port,
    # and each other one on the next.
    metrics_every_seconds: float = Field(default=5.0, ge=0)
    metrics_galleries: int = Field(default=100, ge=0)
    worker_metrics_port: int | None = Field(default=None, ge=0, le=65535)
    worker_metrics_host: str = "127.0.0.1"
    api_metrics_port: int | None = Field(default=None, ge=1, le=65535)
    api_metrics_host: str = "127.0.0.1"

    @field_validator("stores")
    @classmethod
    def _have_names(cls, value: dict[str, StoreSetting]) -> dict[str, StoreSetting]:
        wrong = [name for name in value if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name)]
        if wrong:
            raise ValueError(f"a store's name has letters, digits, dots, dashes and underscores: not {wrong[0]!r}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for proxy in filter(None, map(str.strip, value.split(","))):
            ipaddress.ip_network(proxy, strict=False)
        return value

    @property
    def proxies(self) -> list[str]:
        """The addresses and networks of proxies that are believed."""
        return [proxy.strip() for proxy in self.trusted_proxies.split(",") if proxy.strip()]

    def quotas_of(self, tenant: str) -> Quotas:
        """What the tenant may have."""
        return self.tenant_quotas.get(tenant, self.quotas)

    def needs_keys(self, host: str) -> bool:
        """Whether an API that listens on this address serves nobody without a key."""
        if self.auth is None:
            return not _is_loopback(host) or bool(self.proxies)
        return self.auth == "on"

    @property
    def host_names(self) -> list[str]:
        """The names by which the API is reached."""
        return [name.strip() for name in self.allowed_hosts.split(",") if name.strip()]

    @property
    def allowed_origins(self) -> list[str]:
        """The origins whose pages may ask the API."""
        return [origin.strip().rstrip("/") for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def blob_location(self) -> str:
        """The fsspec URL of the blob store."""
        return self.blob_url or f"file://{(self.data / 'blobs').resolve()}"

    def environment(self) -> dict[str, str]:
        """The variables that make another process build an equal `Settings`."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {
            f"GALLERY_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
