"""Commands on galleries, what they hold, and searching them."""

import tempfile
import time
import webbrowser
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

from gallery_upgrade.cli.session import ERROR, USAGE, Session, chosen, command, fail, json_option
from gallery_upgrade.core.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from gallery_upgrade.galleries import Gallery
    from gallery_upgrade.progress import Show

galleries = typer.Typer(no_args_is_help=True, help="Galleries: list, show, create, delete.")

_READ_AT_ONCE = 50_000

Name = Annotated[str, typer.Argument(metavar="GALLERY", help="Name of the gallery.")]
Generation = Annotated[
    str | None, typer.Option(help="active, next (the candidate of an open upgrade), or a generation's number.")
]


@command(galleries, "list")
def list_galleries(session: Session) -> None:
    """List the galleries."""
    rows = (gallery.view for gallery in session.client.galleries)
    session.table(rows, ["name", "model_version", "items", "metric", "index", "task", "created_at"])


@command(galleries, "show")
def show_gallery(session: Session, gallery: Name) -> None:
    """Show one gallery."""
    session.show(session.client.galleries.get(gallery).view)


@command(galleries, "create")
def create_gallery(
    session: Session,
    gallery: Name,
    model_version: Annotated[str, typer.Option(help="Model version that its images are encoded by.")],
    metric: Annotated[str | None, typer.Option(help="l2, cosine or ip [default: l2].")] = None,
    dtype: Annotated[str | None, typer.Option(help="float16 or float32 [default: float16].")] = None,
    task: Annotated[str | None, typer.Option(help="instance or class [default: instance].")] = None,
    index: Annotated[str | None, typer.Option(help="auto, flat, hnsw, ivf or ivf_sq8 [default: auto].")] = None,
    thumbnails: Annotated[bool, typer.Option(help="Keep a thumbnail of each image.")] = True,
    probe_images: Annotated[int | None, typer.Option(help="How many original images are kept to judge by.")] = None,
    exist_ok: Annotated[bool, typer.Option("--exist-ok", help="Take one of that name as it is.")] = False,
) -> None:
    """Create an empty gallery under a model version."""
    given = chosen(metric=metric, dtype=dtype, task=task, index=index, probe_images=probe_images)
    made = session.client.galleries.create(
        gallery,
        model_version=model_version,
        thumbnails=thumbnails,
        exist_ok=exist_ok,
        **given,
    )
    session.say(f"gallery {made.name} under {made.model_version}", made.view)


@command(galleries, "delete")
def delete_gallery(
    session: Session, gallery: Name, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Delete a gallery with everything in it."""
    if not yes:
        typer.confirm(f"Delete {gallery} with everything in it?", abort=True)
    session.client.galleries.delete(gallery)
    session.say(f"deleted {gallery}", {"deleted": gallery})


@command(galleries, "quality")
def show_quality(session: Session, gallery: Name) -> None:
    """Say where a gallery's embeddings come from, and what is expected of them."""
    session.show(session.client.galleries.get(gallery).quality())


def upload(
    session: Session,
    gallery: Name,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of images.")],
    threads: Annotated[int, typer.Option(min=1, max=32, help="Requests under way at once.")] = 4,
    label_from_folder: Annotated[
        bool, typer.Option("--label-from-folder", help="A file's label is the name of the folder that it is in.")
    ] = False,
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing", help="Delete items whose files were sent once and are gone.")
    ] = False,
    delete_most: Annotated[
        bool, typer.Option("--delete-most", help="Let --delete-missing delete more than half of what was sent.")
    ] = False,
    rejected: Annotated[Path, typer.Option(help="Where files that were not taken are listed.")] = Path("rejected.csv"),
    ledger: Annotated[Path | None, typer.Option(help="Where is kept what was sent [default: in your home].")] = None,
) -> None:
    """Send the images below a folder; an item's id is its file's path there.

    A second run sends what is new or changed. A run that was killed goes on when it is given again. Exits with 1 if
    files were rejected or missing, with 2 if --delete-missing would delete most, with 130 if it is interrupted.
    """
    uploaded = session.client.galleries.get(gallery).upload_folder(
        folder,
        progress=session.progress,
        threads=threads,
        describe=_label_of_folder if label_from_folder else None,
        delete_missing=delete_missing,
        delete_most=delete_most,
        ledger=ledger,
        rejected=rejected,
    )
    counts = {name: count for name, count in vars(uploaded).items() if isinstance(count, int)}
    session.say(", ".join(f"{count} {name}" for name, count in counts.items()), vars(uploaded))
    if uploaded.reasons:
        fail(f"{len(uploaded.reasons)} files were rejected or are missing: {printable(str(rejected))} says why.")


def search(
    session: Session,
    gallery: Name,
    query: Annotated[str, typer.Argument(help="Path of an image, or an item's id.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many neighbours.")] = 10,
    filter: Annotated[
        str | None, typer.Option(help='Condition as JSON, or @FILE: \'{"metadata.year": {"gte": 2020}}\'.')
    ] = None,
    generation: Generation = None,
    max_distance: Annotated[float | None, typer.Option(help="Leave out what is farther away.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="label or metadata.PATH: the nearest item of each value alone.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the pictures in a browser.")] = False,
) -> None:
    """Find the nearest items of an image or of an item, nearest first."""
    condition = json_option(filter, "--filter")
    given = chosen(generation=generation, max_distance=max_distance, filter=condition, group_by=group_by)
    hits = session.client.galleries.get(gallery).search(
        query,
        k=k,
        **given,
    )
    columns = ["id", "distance", "label", "origin", "image_uri"]
    session.table(list(hits), columns if group_by is None else ["group", *columns])
    if hits.complete is False and not session.as_json:
        typer.echo(f"Fewer than {k} groups were found among the nearest items; there may be more.", err=True)
    if open_:
        page = Path(tempfile.mkstemp(prefix="hits-", suffix=".html")[1])
        page.write_text(f"<!doctype html><meta charset=utf-8><title>{gallery}</title>{hits._repr_html_()}")
        webbrowser.open(page.as_uri())


@dataclass
class OpenedStore:
    """A gallery in another store: what it says of itself, and its rows, as tables with the columns id, embedding and
    perhaps side_information, label, image_uri and metadata. `faults` says what of it cannot be read, once the tables
    were."""

    description: "Mapping[str, Any]"
    tables: "Iterator[pa.Table]"
    faults: list[str] = field(default_factory=list)


class ReadStore(Protocol):
    """Opens the store that a URL names, to be read in tables of about so many rows; those of one that is `described`
    have what the store says of its items beside vectors. Raises ValueError."""

    def __call__(self, url: str, rows: int, *, described: bool = False) -> OpenedStore: ...


_NO_STORES = "This client reads files alone: stores by their URLs are read by the service's `gallery-upgrade`."


def import_of(read_store: ReadStore | None) -> Callable[..., None]:
    """Return the command `import`."""

    def import_vectors(
        session: Session,
        gallery: Name,
        source: Annotated[
            str,
            typer.Argument(
                help="Parquet, Arrow, .npy or FAISS with NAME.ids.txt beside it, a folder of Parquet, clip-retrieval's;"
                " or the URL of a store.",
            ),
        ],
        model_version: Annotated[str | None, typer.Option(help="Refuse unless the gallery is under this one.")] = None,
        create: Annotated[
            bool,
            typer.Option(
                "--create",
                help="Make the gallery, and --model-version without networks, unless they are there: of the source's"
                " dimensions and, of a store, metric and number format.",
            ),
        ] = False,
        metadata: Annotated[
            bool, typer.Option(help="Of a store: bring what it says of its items beside their vectors.")
        ] = True,
    ) -> None:
        """Bring vectors in that were computed elsewhere by the gallery's model version, with ids, labels and metadata;
        of a store, with what its columns or payloads say."""
        given = chosen(model_version=model_version)
        store = opened_store(read_store, source, described=metadata) if is_url(source) else None
        tables = read_tables(source) if store is None else store.tables
        if create:
            if model_version is None:
                raise typer.BadParameter("--create needs --model-version", param_hint="--create")
            first = next(iter(tables), None)
            if first is None:
                fail("There are no vectors, by which to tell dimensions.")
            into = _created(session, gallery, model_version, first, {} if store is None else store.description)
            tables = chain([first], tables)
        else:
            into = session.client.galleries.get(gallery)
        count = 0
        with _shown_progress(session) as show:
            for table in tables:
                count += into.import_vectors(table, **given)
                show({"importing": {"done": count, "total": count}})
        if store is not None and store.faults:
            fail("\n  ".join([f"{count} vectors imported; some could not be read:", *store.faults[:5]]))
        session.say(f"{count} vectors imported", {"count": count})

    return import_vectors


def read_tables(source: str) -> "Iterator[pa.Table]":
    """Give tables of a gallery that lives in files. Ends with 2 where there are none."""
    from gallery_upgrade.arrays import read_vectors

    return read_vectors(existing_path(source), _READ_AT_ONCE)


@contextmanager
def _shown_progress(session: Session) -> "Iterator[Show]":
    from gallery_upgrade.progress import shown

    with shown(session.progress) as show:
        yield show if show is not None else lambda _: None


def _created(
    session: Session, gallery: str, version: str, table: "pa.Table", description: "Mapping[str, Any]"
) -> "Gallery":
    """Return a gallery that is made, with its version, by what a table and the store say, unless they are there."""
    from gallery_upgrade.arrays import dimension_of
    from gallery_upgrade.errors import NotFound

    api = session.client.api
    try:
        api.get_model_version(name=version)
    except NotFound:
        spec = {"embedding_dim": dimension_of(table, "embedding")}
        if "side_information" in table.column_names:
            spec["side_information_dim"] = dimension_of(table, "side_information")
        api.register_model_version(name=version, spec=spec)
    given = chosen(metric=description.get("metric"), dtype=description.get("dtype"))
    return session.client.galleries.create(gallery, model_version=version, exist_ok=True, **given)


def doctor_of(read_store: ReadStore | None) -> Callable[..., None]:
    """Return the command `doctor`."""

    def doctor(
        session: Session,
        source: Annotated[str, typer.Argument(help="Files of vectors, as `import` takes them, or the URL of a store.")],
    ) -> None:
        """Say what is in a gallery that lives in files or in another store, and what an import or an upgrade of it
        needs. No service is asked.

        Exits with 1 if an import would refuse some of it.
        """
        from gallery_upgrade.examining import add_store, examine

        if is_url(source):
            began = time.monotonic()
            store = opened_store(read_store, source)
            found = examine(store.tables)
            add_store(found, store.description, store.faults, time.monotonic() - began)
        else:
            found = examine(read_tables(source))
        session.show({name: value for name, value in vars(found).items() if session.as_json or name != "advice"})
        if not session.as_json:
            for sentence in found.advice:
                typer.echo(f"- {sentence}")
        if found.refused:
            raise typer.Exit(ERROR)

    return doctor


def is_url(source: str) -> bool:
    """Return whether a source is a store's URL, and no path and no name."""
    return "://" in source


def existing_path(source: str) -> Path:
    """Return a path that is there. Ends with 2 where it is not."""
    path = Path(source).expanduser()
    if not path.exists():
        fail(f"There is no {source}.", USAGE)
    return path


def opened_store(read_store: ReadStore | None, url: str, *, described: bool = False) -> OpenedStore:
    """Open a store by its URL. Ends with 2 where this application reads none."""
    if read_store is None:
        fail(_NO_STORES, USAGE)
    return read_store(url, _READ_AT_ONCE, described=described)


def export(
    session: Session,
    gallery: Name,
    output: Annotated[Path, typer.Argument(dir_okay=False, help="By its suffix: .parquet or .arrows (a stream).")],
    generation: Annotated[str | None, typer.Option(help="active, next, or a generation's number.")] = None,
) -> None:
    """Write a gallery's vectors, all of one revision, to a file."""
    kinds: dict[str, Literal["arrow", "parquet"]] = {".parquet": "parquet", ".arrows": "arrow"}
    if output.suffix not in kinds:
        fail("The output is .parquet or .arrows.", USAGE)
    given = chosen(generation=generation)
    part = output.with_name(output.name + ".part")
    api = session.client.api
    with api.get_embeddings(name=gallery, format=kinds[output.suffix], **given) as body:
        with part.open("wb") as stream:
            for block in body:
                stream.write(block)
        headers = body.headers
    part.replace(output)
    rows = int(headers["gallery-rows"])
    session.say(f"{rows} rows of revision {headers['gallery-revision']} in {printable(str(output))}", {"rows": rows})


def _label_of_folder(path: Path) -> dict[str, str]:
    return {"label": printable(path.parent.name)}
