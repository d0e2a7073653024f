"""The scenes of a catalog: photos of one declared group and near-duplicates, in Arrow and NumPy columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mm_core.core.records import ALL_CATEGORIES
from mm_core.imaging.hash_index import connected


def declared_of(samples: pa.Table) -> pa.DictionaryArray:
    """Return the declared group of each sample, or its id as a group of its own."""
    group = samples["group"]
    named = pc.greater(pc.fill_null(pc.binary_length(group), 0), 0)
    return encoded(pc.if_else(named, group, samples["id"]))


def connect(
    codes: np.ndarray,
    groups: int,
    links: tuple[np.ndarray, np.ndarray],
    joins: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Return the component number of each declared group, int (groups,).

    Args:
        codes: (samples,) int: number of each sample's declared group.
        groups: Number of declared groups.
        links: Positions of samples with the same content.
        joins: Pairs of declared groups of one scene.
    """
    joined = np.array(joins, np.int64).reshape(-1, 2)
    left, right = (np.concatenate((codes[side], joined[:, n])) for n, side in enumerate(links))
    # Only the positions of the entries count: repeated links may add up to any value.
    edges = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(groups, groups))
    return connected_components(edges, directed=False)[1]


def links_of(samples: pa.Table, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of positions of samples with the same content, by perceptual hash or by `near`.

    Among samples with equal hashes, the first arrival is linked with all others. The links between the samples at one
    time therefore do not depend on later arrivals.
    """
    # Samples without a hash have no near-duplicates by hash.
    hashed = np.flatnonzero(filled(samples["phash"]))
    if "accepted_at" in samples.column_names:
        arrivals = encoded(samples["accepted_at"])
        ranks = np.argsort(np.argsort(np.array(arrivals.dictionary.to_pylist(), object))) + 1
        order = np.asarray(arrivals.indices.fill_null(-1))
        rank = np.where(order < 0, 0, np.concatenate((ranks, [0]))[order])  # no time counts as the earliest
        hashed = hashed[np.argsort(rank[hashed], kind="stable")]
    left, right = connected(_hashes(samples["phash"].take(pa.array(hashed))), bits)
    others = left != right
    # Links that ingest found by landmarks are added to those of the hashes.
    near = whole_column(samples["near"])
    linked, owners = near.flatten(), np.asarray(pc.list_parent_indices(near))
    # The index of an erased sample is -1.
    earlier = np.asarray(pc.index_in(linked, whole_column(samples["id"])).fill_null(-1)) if len(linked) else owners
    known = earlier >= 0
    return (
        np.concatenate((hashed[left[others]], owners[known])).astype(np.int64),
        np.concatenate((hashed[right[others]], earlier[known])).astype(np.int64),
    )


def _hashes(column: pa.ChunkedArray) -> np.ndarray:
    """Return hexadecimal texts as uint64."""
    texts = column.to_pylist()
    if all(len(text) == 16 for text in texts):
        return np.frombuffer(bytes.fromhex("".join(texts)), ">u8").astype(np.uint64)
    return np.array([int(text, 16) for text in texts], np.uint64)


def equals(column: pa.DictionaryArray, value: str) -> np.ndarray:
    """Return where a column has a value, bool (rows,); null has none."""
    # The last entry is for nulls.
    names = np.array([*(text == value for text in column.dictionary.to_pylist()), False])
    return names[np.asarray(column.indices.fill_null(len(names) - 1))]


def filled(column: pa.ChunkedArray) -> np.ndarray:
    """Return where a text is neither null nor empty."""
    return np.asarray(pc.greater(pc.fill_null(pc.binary_length(column), 0), 0).to_numpy())


def whole_column(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def encoded(column: pa.ChunkedArray | pa.Array) -> pa.DictionaryArray:
    """Return a column as one array of codes."""
    whole = whole_column(column) if isinstance(column, pa.ChunkedArray) else column
    return whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()


def known_categories(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """Return the categories of a column; null for unknown ones."""
    known = [name if name in ALL_CATEGORIES else None for name in column.dictionary.to_pylist()]
    return encoded(mapped(column, known, None))


def mapped(column: pa.DictionaryArray, values: Sequence[str | None], null: str | None) -> pa.Array:
    """Return the value of each row's code; `null` for rows without a code."""
    codes = column.indices.fill_null(len(values))
    return pa.array([*values, null], pa.string()).take(codes)
