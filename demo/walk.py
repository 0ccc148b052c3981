"""Files for the README's walk-through: two model versions, a transformation, and six scanned digits.

The networks are trained for seconds only; what an upgrade is worth is for `make demo` to show.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from demo.data import load_digits, split
from demo.training import DIGITS, train_everything
from models.artifacts import save_network

IMAGES = 6


def write_files(folder: Annotated[Path, typer.Argument(help="Where to write the files.")]) -> None:
    """Write φ, ψ of two versions, h, g, their spec and six images to a folder."""
    recipe = replace(
        DIGITS,
        encoder=replace(DIGITS.encoder, epochs=5),
        simclr=replace(DIGITS.simclr, epochs=5),
        transformation=replace(DIGITS.transformation, epochs=6, inner_dim=256),
    )

    training, gallery = split(load_digits())
    networks = train_everything(training, recipe, lambda _name: lambda _done, _total: None)

    folder.mkdir(parents=True, exist_ok=True)
    named = {
        "phi_1": networks.old_encoder,
        "psi_1": networks.old_side_information,
        "phi_2": networks.new_encoder,
        "psi_2": networks.new_side_information,
        "h": networks.h,
        "g": networks.g,
    }
    for name, network in named.items():
        (folder / f"{name}.safetensors").write_bytes(save_network(network))

    dim = recipe.embedding_dim
    spec = {"embedding_dim": dim, "side_information_dim": dim, "preprocessing": recipe.preprocessing.to_json()}
    (folder / "spec.json").write_text(json.dumps(spec, indent=2))
    for position in range(IMAGES):
        (folder / f"{position}.png").write_bytes(gallery.files[position * len(gallery) // IMAGES])

    typer.echo(f"wrote {len(named)} networks, spec.json and {IMAGES} images to {folder}")


if __name__ == "__main__":
    typer.run(write_files)
