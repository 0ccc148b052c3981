"""Transformations in the form in which the paper's public code exports them."""

from typing import Any

import numpy as np
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from torch import nn

from tests.networks import PublicForm, torchscript_bytes
from tests.registrations import ENCODERS, post_transformation, post_version, seeded
from tests.rows import all_rows
from tests.scenario import create_gallery, post_images, start_upgrade, state_of
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade


def test_a_gallery_is_upgraded_by_networks_in_the_papers_public_form(client: TestClient, worker: WorkerParts) -> None:
    for name, embedding_dim, side_dim, seed in (("v1", 6, 5, 1), ("v2", 8, 4, 3)):
        make = ENCODERS["torchscript, trailing axes"][1]
        dims = {"embedding_dim": embedding_dim, "side_information_dim": side_dim}
        assert (
            post_version(client, name, make(embedding_dim, seed), make(side_dim, seed + 1), **dims).status_code == 201
        )
    h, g = seeded(PublicForm, 6, 5, 8, seed=5), seeded(PublicForm, 6, 5, 4, seed=6)
    registered = post_transformation(client, "v1", "v2", torchscript_bytes(h), torchscript_bytes(g))
    create_gallery(client)
    post_images(client, range(9))

    upgrade_id = start_upgrade(client, "v2", cutover="auto")
    for _ in range(20):
        advance_upgrade(worker, upgrade_id)
        if state_of(client, upgrade_id) == "live":
            break

    assert (registered.json()["h_kind"], registered.json()["g_kind"]) == ("torchscript", "torchscript")
    assert state_of(client, upgrade_id) == "live"
    old, new = all_rows(worker, upgrade_id)
    assert old.side_information is not None
    assert new.side_information is not None
    np.testing.assert_allclose(new.embedding, public_form(h, old.embedding, old.side_information), atol=5e-3)
    np.testing.assert_allclose(new.side_information, public_form(g, old.embedding, old.side_information), atol=5e-3)


def public_form(network: nn.Module, embedding: NDArray[Any], side_information: NDArray[Any]) -> NDArray[Any]:
    """Run a network on (B, D, 1, 1) inputs, without the service; (B, D_to)."""
    inputs = [torch.from_numpy(rows.astype(np.float32))[:, :, None, None] for rows in (embedding, side_information)]
    output: NDArray[Any] = network(*inputs).detach().numpy()[:, :, 0, 0]
    return output
