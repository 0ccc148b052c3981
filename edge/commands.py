"""The commands `transform` and `verify` of `gallery-upgrade`; what they run with is imported when they run."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from edge.transforming import Job

Source = Annotated[
    Path,
    typer.Argument(
        metavar="IN", exists=True, dir_okay=False, help="Parquet, Arrow stream or file, .npy, or a flat FAISS index."
    ),
]
H = Annotated[Path, typer.Option("--h", exists=True, dir_okay=False, help="h as ONNX.")]
G = Annotated[
    Path | None, typer.Option("--g", exists=True, dir_okay=False, help="g as ONNX: upgrades the side-information.")
]
SideInformation = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="A .npy of side-information, row by row beside a .npy or an index."),
]
EmbeddingColumn = Annotated[str, typer.Option(help="The table's column of embeddings.")]
SideColumn = Annotated[str, typer.Option("--side-information-column", help="The table's column of side-information.")]
Normalize = Annotated[
    bool | None,
    typer.Option("--normalize/--no-normalize", help="Whether new embeddings have unit norm, where h does not say."),
]
Threads = Annotated[int, typer.Option(min=0, help="Threads that compute; 0: one for each core.")]


def transform(
    source: Source,
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="By its suffix: .parquet, .arrow (file), .arrows (stream), .npy, .faiss."),
    ],
    h: H,
    g: G = None,
    side_information: SideInformation = None,
    embedding_column: EmbeddingColumn = "embedding",
    side_information_column: SideColumn = "side_information",
    normalize: Normalize = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    threads: Threads = 0,
) -> None:
    """Upgrade a file of vectors by h (and g) as ONNX, without a server. A run that was killed goes on when it is given
    again; OUT appears when it is whole.

    Other columns are kept; origin becomes "transformed", hops one more. Side-information is left out without --g.
    """
    import pyarrow as pa

    from edge.errors import EdgeError
    from edge.transforming import Progress
    from edge.transforming import transform as transform_file

    job = _job(source, output, h, g, side_information, (embedding_column, side_information_column), normalize, threads)
    try:
        rows = transform_file(job, overwrite, Progress(_show))
    except (EdgeError, OSError, pa.ArrowException) as error:  # the last: a file that is damaged further on
        _fail(error)
    typer.echo(f"{rows} rows upgraded to {output}", err=True)


def verify(
    source: Source,
    output: Annotated[
        Path, typer.Argument(metavar="OUT", exists=True, dir_okay=False, help="What `transform` made of IN.")
    ],
    h: H,
    g: G = None,
    side_information: SideInformation = None,
    embedding_column: EmbeddingColumn = "embedding",
    side_information_column: SideColumn = "side_information",
    normalize: Normalize = None,
    sample: Annotated[int, typer.Option(min=1, help="How many rows are computed again.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Which rows are drawn.")] = 0,
    threads: Threads = 0,
) -> None:
    """Compare OUT with what upgrading IN gives: counts, every other column, checksums, and a sample of the vectors.

    Exits with 1 and says what differs.
    """
    import pyarrow as pa

    from edge.errors import EdgeError
    from edge.verifying import verify as verify_file

    job = _job(source, output, h, g, side_information, (embedding_column, side_information_column), normalize, threads)
    try:
        differences = verify_file(job, sample, seed)
    except (EdgeError, OSError, pa.ArrowException) as error:  # the last: a file that is damaged further on
        _fail(error)
    for difference in differences:
        typer.echo(difference)
    if differences:
        raise typer.Exit(1)
    typer.echo(f"{output} is what {h} gives for {source}", err=True)


def _job(
    source: Path,
    output: Path,
    h: Path,
    g: Path | None,
    side_information: Path | None,
    columns: tuple[str, str],
    normalize: bool | None,
    threads: int,
) -> "Job":
    from edge.outputs import Columns
    from edge.transforming import Job

    return Job(source, output, h, g, side_information, Columns(*columns), normalize, threads)


def _show(done: int, rows: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{done:,} of {rows:,} rows", nl=done == rows, err=True)


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"gallery-upgrade: {error}", err=True)
    raise typer.Exit(1) from error
