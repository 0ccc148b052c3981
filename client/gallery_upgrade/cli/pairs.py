"""Commands that train h from few pairs: which items are encoded again, and what is learned from their vectors."""

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gallery_upgrade.cli.galleries import ReadStore, is_url, opened_store, read_tables
from gallery_upgrade.cli.networks import trained
from gallery_upgrade.cli.session import Session, chosen, command

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

_MEASURED = ["network", "mean_squared_error", "mean_predictor_error", "mean_cosine", "own_item_first"]

Source = Annotated[str, typer.Argument(metavar="GALLERY", help="Name of the gallery, or the URL of a store.")]


def commands_of(read_store: ReadStore | None) -> typer.Typer:
    """Return the commands `pairs draw` and `pairs train`."""
    pairs = typer.Typer(no_args_is_help=True, help="Training h from some items' vectors, encoded again: draw, train.")
    command(pairs, "draw")(_draw_of(read_store))
    command(pairs, "train")(_train_of(read_store))
    return pairs


def _draw_of(read_store: ReadStore | None) -> Callable[..., None]:
    def draw_ids(
        session: Session,
        source: Source,
        out: Annotated[Path, typer.Option(dir_okay=False, help="CSV to write: id, image_uri.")],
        wanted: Annotated[int, typer.Option(min=1, help="How many items.")] = 1000,
        seed: Annotated[int, typer.Option(min=0, help="Which items are drawn.")] = 0,
    ) -> None:
        """Draw items whose images the new model is to encode, of each label about its share, and write their ids.

        What it gives for them, with their ids, is what `pairs train` takes.
        """
        from gallery_upgrade.pairs import draw

        drawn = draw(_items(session, read_store, source), wanted, seed)
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "image_uri"])
            writer.writerows((each.id, each.image_uri) for each in drawn)
        session.say(f"{len(drawn)} ids in {out}", {"ids": len(drawn), "seed": seed})

    return draw_ids


def _train_of(read_store: ReadStore | None) -> Callable[..., None]:
    def train(
        session: Session,
        source: Source,
        vectors: Annotated[
            Path,
            typer.Argument(
                help="The new version's vectors: Parquet or Arrow with id and embedding, .npy with ids beside."
            ),
        ],
        to_version: Annotated[str, typer.Option("--to", help="Model version that gave the vectors.")],
        from_version: Annotated[
            str | None, typer.Option("--from", help="Model version of a store's embeddings; a gallery says its own.")
        ] = None,
        with_g: Annotated[
            bool, typer.Option("--with-g", help="Train g too, from a column side_information of the vectors.")
        ] = False,
        recipe: Annotated[str | None, typer.Option(help="How to train: default or paper.")] = None,
        task: Annotated[str | None, typer.Option(help="What galleries are searched for: instance or class.")] = None,
        epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the rows.")] = None,
        inner_dim: Annotated[int | None, typer.Option(min=1, help="Width of the network's inner layers.")] = None,
        seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything that is random.")] = None,
    ) -> None:
        """Train h (and g) on the service from the stored vectors of some items and the new version's of the same; print
        whether h is linear or an MLP, as rows that it did not learn from decide, and its held-out metrics."""
        import pyarrow.parquet as pq

        from gallery_upgrade.pairs import network_of, pair

        before = from_version
        if before is None and is_url(source):
            raise typer.BadParameter("a store does not say it: give --from", param_hint="--from")
        if before is None:
            before = session.client.galleries.get(source).model_version
        found = pair(_stored(session, read_store, source), read_tables(str(vectors)))
        options = chosen(recipe=recipe, task=task, epochs=epochs, inner_dim=inner_dim, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pairs.parquet"
            pq.write_table(found.table, path)
            job = session.client.api.train_transformation(
                from_version=before, to_version=to_version, with_g=with_g, options=options, pairs=path
            )
        made = trained(session, job.id)
        network = network_of((made.training or {}).get("choices", {}).get("h", {}))
        if session.as_json:
            session.print_json(
                {"transformation": made, "pairs": found.table.num_rows, "missing": found.missing, "h": network}
            )
            return
        missing = f"; {found.missing} ids are not there" if found.missing else ""
        session.say(f"transformation {made.id} from {before} to {to_version}: {found.table.num_rows} pairs{missing}")
        session.say(f"h is {network}")
        session.table(_measured(made.metrics or {}), _MEASURED)

    return train


def _measured(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each network of which something was measured on rows held out."""
    return [{"network": name, **metrics[name]} for name in ("h", "linear", "g") if isinstance(metrics.get(name), dict)]


def _items(
    session: Session, read_store: ReadStore | None, source: str
) -> "Iterator[tuple[str, str | None, str | None]]":
    """Give the id, label and image_uri of every item."""
    if not is_url(source):
        for item in session.client.galleries.get(source).items():
            yield item.id, item.label, item.image_uri
        return
    for table in opened_store(read_store, source, described=True).tables:
        columns = [
            table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
            for name in ("id", "label", "image_uri")
        ]
        yield from zip(*columns, strict=True)


def _stored(session: Session, read_store: ReadStore | None, source: str) -> "Iterable[pa.Table | pa.RecordBatch]":
    if is_url(source):
        return opened_store(read_store, source).tables
    return session.client.galleries.get(source).vectors()
