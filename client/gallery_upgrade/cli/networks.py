"""Commands on model versions, transformations, and training them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gallery_upgrade.cli.session import USAGE, Session, chosen, command, fail, json_option

if TYPE_CHECKING:
    from gallery_upgrade.api import models

versions = typer.Typer(no_args_is_help=True, help="Model versions: list, show, register, add-networks, delete.")
transformations = typer.Typer(no_args_is_help=True, help="Transformations: list, show, register, download, delete.")

Version = Annotated[str, typer.Argument(metavar="VERSION", help="Name of the model version.")]
TransformationId = Annotated[int, typer.Argument(metavar="ID", help="Number of the transformation.")]
Spec = Annotated[
    str,
    typer.Option(help="JSON, or @FILE: embedding_dim, side_information_dim?, normalize?, of networks preprocessing."),
]
EmbeddingModel = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="φ: ONNX or safetensors.")]
SideInformationModel = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="ψ: ONNX or safetensors.")]
From = Annotated[str, typer.Option("--from", help="Model version that galleries are under.")]
To = Annotated[str, typer.Option("--to", help="Model version to lead to.")]


@command(versions, "list")
def list_versions(session: Session) -> None:
    """List the model versions."""
    rows = session.client.pages(session.client.api.list_model_versions)
    session.table(rows, ["name", "embedding_dim", "side_information_dim", "embedding_model_kind", "created_at"])


@command(versions, "show")
def show_version(session: Session, version: Version) -> None:
    """Show one model version."""
    session.show(session.client.api.get_model_version(name=version))


@command(versions, "register")
def register_version(
    session: Session,
    version: Version,
    spec: Spec,
    embedding_model: EmbeddingModel = None,
    side_information_model: SideInformationModel = None,
) -> None:
    """Register a model version: φ, and ψ where there is one; or of vectors alone, without networks."""
    given = chosen(embedding_model=embedding_model, side_information_model=side_information_model)
    view = session.client.api.register_model_version(name=version, spec=json_option(spec, "--spec"), **given)
    without = "" if given else ", without networks"
    session.say(f"model version {view.name} of {view.embedding_dim} numbers{without}", view)


@command(versions, "add-networks")
def add_networks(
    session: Session,
    version: Version,
    embedding_model: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="φ: ONNX or safetensors.")],
    spec: Spec,
    side_information_model: SideInformationModel = None,
) -> None:
    """Add φ, and ψ where there is one, to a model version that was registered without networks."""
    given = chosen(side_information_model=side_information_model)
    view = session.client.api.add_networks(
        name=version, spec=json_option(spec, "--spec"), embedding_model=embedding_model, **given
    )
    session.say(f"model version {view.name} encodes images", view)


@command(versions, "delete")
def delete_version(session: Session, version: Version) -> None:
    """Delete a model version that nothing refers to."""
    session.client.api.delete_model_version(name=version)
    session.say(f"deleted {version}", {"deleted": version})


@command(transformations, "list")
def list_transformations(session: Session) -> None:
    """List the transformations."""
    rows = session.client.pages(session.client.api.list_transformations)
    session.table(rows, ["id", "from_version", "to_version", "h_kind", "g_kind", "default", "created_at"])


@command(transformations, "show")
def show_transformation(session: Session, transformation: TransformationId) -> None:
    """Show one transformation, with what it was measured by."""
    session.show(session.client.api.get_transformation(transformation_id=transformation))


@command(transformations, "register")
def register_transformation(
    session: Session,
    from_version: From,
    to_version: To,
    h: Annotated[Path, typer.Option("--h", exists=True, dir_okay=False, help="h: ONNX or safetensors.")],
    g: Annotated[Path | None, typer.Option("--g", exists=True, dir_okay=False, help="g, to upgrade again.")] = None,
) -> None:
    """Register a trained h, and g where there is one."""
    given = chosen(g=g)
    view = session.client.api.register_transformation(from_version=from_version, to_version=to_version, h=h, **given)
    session.say(f"transformation {view.id} from {view.from_version} to {view.to_version}", view)


@command(transformations, "download")
def download_transformation(
    session: Session,
    transformation: TransformationId,
    part: Annotated[str, typer.Argument(help="h or g.")],
    output: Annotated[Path, typer.Argument(dir_okay=False, help="File to write.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="As ONNX, for `transform`.")] = False,
) -> None:
    """Write h or g to a file, as it was registered or as ONNX."""
    if part not in ("h", "g"):
        fail("A transformation has the parts h and g.", USAGE)
    given: dict[str, Any] = {"format": "onnx"} if onnx else {}
    api = session.client.api
    with api.get_transformation_artifact(
        transformation_id=transformation, part="h" if part == "h" else "g", **given
    ) as body:
        content = body.read()
    output.write_bytes(content)
    session.say(f"{len(content)} bytes in {output}", {"bytes": len(content)})


@command(transformations, "delete")
def delete_transformation(session: Session, transformation: TransformationId) -> None:
    """Delete a transformation that no upgrade used."""
    session.client.api.delete_transformation(transformation_id=transformation)
    session.say(f"deleted transformation {transformation}", {"deleted": transformation})


def train(
    session: Session,
    from_version: From,
    to_version: To,
    pairs: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Parquet of paired vectors to upload.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set below the service's GALLERY_DATASETS.")] = None,
    with_g: Annotated[bool, typer.Option("--with-g", help="Train g too: the gallery will be upgraded again.")] = False,
    recipe: Annotated[str | None, typer.Option(help="How to train: default or paper.")] = None,
    task: Annotated[str | None, typer.Option(help="What galleries are searched for: instance or class.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the rows.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Rows of a step of the optimiser.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the optimiser, after warming up.")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Of the optimiser.")] = None,
    inner_dim: Annotated[int | None, typer.Option(min=1, help="Width of the network's inner layers.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything that is random.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the training until it has ended.")] = True,
) -> None:
    """Train h (and g) on the service, and print the transformation with its held-out metrics."""
    if (pairs is None) == (dataset is None):
        raise typer.BadParameter("give one of --pairs and --dataset")
    given = chosen(
        recipe=recipe,
        task=task,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        inner_dim=inner_dim,
        seed=seed,
    )
    source: dict[str, Any] = {"dataset": dataset} if pairs is None else {"pairs": pairs}
    client = session.client
    view = client.api.train_transformation(
        from_version=from_version, to_version=to_version, with_g=with_g, options=given, **source
    )
    if not wait:
        session.say(f"job {view.id}", view)
        return
    made = trained(session, view.id)
    session.say(f"transformation {made.id}", made)
    if not session.as_json:
        session.print_json(made.metrics)


def trained(session: Session, job_id: int) -> "models.TransformationView":
    """Follow a training until it has ended, and return the transformation that it made. Raises `Failed`."""
    job = session.client.job(job_id).wait(progress=session.progress)
    assert job.result is not None
    return session.client.api.get_transformation(transformation_id=job.result["transformation"])
