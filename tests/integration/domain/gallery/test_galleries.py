"""A gallery's own figures."""

from fastapi.testclient import TestClient

from tests.scenario import import_vectors, post_images


def test_a_gallery_says_how_many_items_it_has_whatever_was_written(gallery: TestClient) -> None:
    def counts() -> tuple[int, int]:
        listed = gallery.get("/v1/galleries/g/items?limit=1000").json()["items"]
        return gallery.get("/v1/galleries/g").json()["items"], len(listed)

    post_images(gallery, [1, 2, 3, 4])
    import_vectors(gallery, ["image-3.png", "vector-1", "vector-2"])
    assert counts() == (6, 6)
    for _ in range(2):
        gallery.delete("/v1/galleries/g/items/vector-1")
    gallery.delete("/v1/galleries/g/items/image-1.png")
    post_images(gallery, [1])
    assert gallery.post("/v1/galleries/g/images", files=[("files", ("bad", b"no image"))]).status_code == 422
    assert counts() == (5, 5)
