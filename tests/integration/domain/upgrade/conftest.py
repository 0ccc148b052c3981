"""A gallery to upgrade."""

import pytest
from fastapi.testclient import TestClient

from tests.scenario import create_upgradable_gallery, post_images


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 has 20 images and can be upgraded to v2."""
    create_upgradable_gallery(client)
    post_images(client, range(20))
    return client
