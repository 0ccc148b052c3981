"""Finding labelled images in folders and Parquet, and reading them in order."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.image_sets import IMAGE_SUFFIXES, ImageSet, NoImages, find_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(["b/2.png", "a/10.png", "a/9.PNG", "b/x.jpg", "c/0.png"]):
        write(tmp_path / "images" / name, str(number).encode())
    (tmp_path / "images" / "a" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def files_of(source: ImageSet) -> list[bytes]:
    return [image.data for image in source.read()]


def test_class_folders_are_classes_by_name(folder: Path) -> None:
    source = find_images(folder)

    labels, names = source.classes()
    assert names == ["a", "b", "c"]
    assert labels.tolist() == [0, 0, 1, 1, 2]
    assert [image.label for image in source.read()] == ["a", "a", "b", "b", "c"]
    assert files_of(source) == [b"1", b"2", b"0", b"3", b"4"]


def test_parquets_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    images = [bytes([number]) for number in range(4)]
    parquet(tmp_path / "0.parquet", image=images[:3], label=[10, 9, 10], label_name=["ten", "nine", "ten"])
    parquet(tmp_path / "1.parquet", image=[{"bytes": images[3], "path": "x"}], label=[-1], label_name=["none"])

    source = find_images(tmp_path)
    numbers_alone = find_images(parquet(tmp_path / "numbers", image=images[:2], label=[10, 9]))

    labels, names = source.classes()
    assert names == ["none", "nine", "ten"]
    assert labels.tolist() == [2, 1, 2, 0]
    assert files_of(source) == images
    assert numbers_alone.classes().names == ["9", "10"]
    assert files_of(numbers_alone) == images[:2]


@pytest.mark.parametrize("column", ["label", "label_name"])
def test_parquets_classes_without_numbers_are_in_the_order_of_their_names(tmp_path: Path, column: str) -> None:
    place = parquet(tmp_path / "x.parquet", image=[b"0", b"1"], **{column: ["dog", "cat"]})

    source = find_images(place)

    labels, names = source.classes()
    assert names == ["cat", "dog"]
    assert labels.tolist() == [1, 0]


def test_places_without_labelled_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no")

    for place, sentence in (
        (tmp_path / "empty", "neither class folders"),
        (tmp_path / "text.txt", "is not a Parquet file"),
        (parquet(tmp_path / "a.parquet", picture=[b""], label=[1]), "has no columns image and label; it has picture"),
        (parquet(tmp_path / "b.parquet", image=[b""]), "has no columns image and label"),
        (parquet(tmp_path / "c.parquet", image=[b"", b""], label=[1, None]), "have no label"),
    ):
        with pytest.raises(NoImages, match=sentence):
            find_images(place).classes()


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_form_of_image_is_found_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "a" / f"x{suffix}", b"x")

    assert len(find_images(tmp_path)) == 1


def test_reading_begins_at_any_position(folder: Path, tmp_path: Path) -> None:
    images, labels = [b"%d" % number for number in range(300)], list(range(300))
    (tmp_path / "parts").mkdir()
    for name, part in (("1", slice(0, 170)), ("2", slice(170, 171)), ("3", slice(171, 300))):
        table = pa.table({"image": images[part], "label": labels[part]})
        pq.write_table(table, tmp_path / "parts" / f"{name}.parquet", row_group_size=100)

    for source in (find_images(folder), find_images(tmp_path / "parts")):
        everything = list(source.read())
        assert len(everything) == len(source)
        for first in (0, 1, 4, 63, 64, 99, 100, 130, 169, 170, 171, 299, 300, 301):
            assert list(source.read(first)) == everything[first:]
    assert files_of(find_images(tmp_path / "parts")) == images
    assert everything[170].where.endswith("2.parquet, row 0")
    assert everything[299].where.endswith("3.parquet, row 128")


def test_an_image_and_its_class_are_told_alike_in_order_and_by_name(folder: Path, tmp_path: Path) -> None:
    names = {"label": [7, 5, 7], "label_name": ["seven", "five", "seven"]}
    places = [
        folder,
        parquet(tmp_path / "both.parquet", image=[b"0", b"1", b"2"], **names),
        parquet(tmp_path / "numbers.parquet", image=[b"0", b"1", b"2"], label=names["label"]),
    ]

    for source in map(find_images, places):
        labels, of_labels = source.classes()
        assert [image.label for image in source.read()] == [of_labels[label] for label in labels]


def test_a_row_without_a_file_has_no_bytes(tmp_path: Path) -> None:
    structs = [{"bytes": None, "path": "x"}, {"bytes": b"x", "path": None}]

    source = find_images(parquet(tmp_path / "x.parquet", image=structs, label=[1, 1]))

    assert files_of(source) == [b"", b"x"]


def test_a_listing_changes_with_the_files_and_not_with_what_is_in_them(folder: Path, tmp_path: Path) -> None:
    def listing() -> str:
        return find_images(folder).listing_sha256()

    before = listing()
    (folder / "b" / "2.png").write_bytes(b"changed")
    same = listing()
    (folder / "b" / "2.png").rename(folder / "b" / "3.png")
    renamed = listing()

    assert same == before
    assert renamed != before


def test_links_are_told_before_they_are_followed(folder: Path, tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere" / "x.png", b"x")
    pairs = parquet(tmp_path / "pairs.parquet", image=[b""], label=[1])
    (folder / "a" / "y.png").symlink_to(elsewhere)
    (folder / "d").symlink_to(elsewhere.parent)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "x.parquet").symlink_to(pairs)
    links: list[Path] = []

    def object_to(link: Path) -> None:
        raise PermissionError(link)

    find_images(folder, links.append)
    find_images(tmp_path / "linked", links.append)

    assert links == [folder / "d", folder / "a" / "y.png", tmp_path / "linked" / "x.parquet"]
    for place in (folder, tmp_path / "linked"):
        with pytest.raises(PermissionError):
            find_images(place, object_to)
