"""What a benchmark of search would get wrong without a sign: its ground truth, and its vectors."""

from pathlib import Path

import numpy as np

from benchmarks.vectors import exact_nearest, make_corpus, recall


def test_exact_search_in_blocks_agrees_with_sorting_all_distances() -> None:
    generator = np.random.default_rng(0)
    gallery, queries = (generator.standard_normal((rows, 8), np.float32) for rows in (100, 7))

    found = exact_nearest(gallery, queries, 5, block_rows=33)

    distances = np.linalg.norm(queries[:, None] - gallery[None], axis=2)
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1)[:, :5])


def test_recall_counts_found_ids_in_any_order_and_no_padding() -> None:
    true = np.array([[1, 2], [3, 4]])

    assert recall(np.array([[2, 1], [4, -1]]), true) == 0.75


def test_rows_beyond_the_distinct_ones_are_copies_with_noise_that_float16_holds(tmp_path: Path) -> None:
    distinct = 50_000

    corpus = make_corpus(distinct + 100, 3, paper=tmp_path, images=tmp_path)

    moved = np.linalg.norm(corpus.gallery[distinct:] - corpus.gallery[:100], axis=1)
    nearest = corpus.gallery[exact_nearest(corpus.gallery[:distinct], corpus.gallery[:100], 2)[:, 1]]
    to_nearest = np.median(np.linalg.norm(nearest - corpus.gallery[:100], axis=1))
    np.testing.assert_allclose(moved, to_nearest, rtol=0.3)
    np.testing.assert_array_equal(corpus.gallery, corpus.gallery.astype(np.float16).astype(np.float32))
    assert len(corpus.queries) == 3


def test_widths_are_chosen_by_other_queries_than_those_that_are_measured(tmp_path: Path) -> None:
    corpus = make_corpus(100, 500, paper=tmp_path, images=tmp_path)

    assert (len(corpus.queries), len(corpus.sample_queries)) == (500, 1_000)
    rows = np.concatenate([corpus.gallery, corpus.queries, corpus.sample_queries])
    assert len(np.unique(rows, axis=0)) == 1_600
