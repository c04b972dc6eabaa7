"""Which photos show the same picture: digests and thumbnails in, one group number per photo out; no disk.

Two photos are the same picture when their bytes are equal, or when their thumbnails have nearly the same difference
hash (which way the brightness steps, 64 bits) and correlate, either as they are or one of them mirrored. The two
guard each other: skies over plains correlate at .95 with 20 bits apart, arches differ in 3 bits and correlate at .7.

Likely pairs are neighbours in sorted lists of hashes, so that 1.2 million photos cost 16 sorts, not 10^12 comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Seen on 6,781 web photos: the 32 pairs within both limits are crops, watermarked, recoloured and mirrored copies, and
# a few second shots from one spot; below .9 such second shots prevail, at .7 come the first pairs of two landmarks.
MAX_BITS = 12  # of 64 that may differ: a resaved copy differs in 1, a resized one in 4, one cropped by 3 % in 6
MIN_CORRELATION = 0.92
MIN_CONTRAST = 4.0  # standard deviation in grey levels; below it JPEG noise decides the hash, so only bytes count

_ROTATIONS = 16  # by 4 bits each; with the window below, 98 % of the pairs within MAX_BITS were met in 6,781 photos
_WINDOW = 128  # neighbours looked at: with 10,000 photos those that share about 7 leading bits, with a million 14
_CHUNK = 1 << 15  # pairs correlated at a time: 75 MB

Grey = NDArray[np.uint8]
Rows = NDArray[np.int64]


def group_duplicates(sha256: Sequence[str], thumbnails: Grey) -> Rows:
    """Group photos that show the same picture.

    Args:
        sha256: [N] hex digests of the files; an empty one equals no other.
        thumbnails: uint8 [N, 16, 18] grey, as `images.inspect_image` gives them; all zeros where there is none.

    Returns:
        int64 [N]: the row of the group's first photo, so a photo without duplicates has its own row.

    >>> photo = np.random.default_rng(0).integers(0, 255, (16, 18), dtype=np.uint8)
    >>> group_duplicates(["a", "b", "c"], np.stack([photo, 255 - photo, photo[:, ::-1]])).tolist()
    [0, 1, 0]
    """
    digests = np.asarray(sha256, dtype=str)
    same_bytes = pairs_of_equals(digests, digests != "")
    return connected(len(digests), np.concatenate([same_bytes, _near_duplicates(thumbnails)], axis=1))


def pairs_of_equals(values: NDArray[Any], wanted: NDArray[np.bool_]) -> Rows:
    """[2, P]: each wanted row and the first row of the same value.

    >>> pairs_of_equals(np.array(["a", "b", "a", "b"]), np.array([True, False, True, False])).tolist()
    [[0, 0], [0, 2]]
    """
    _, first, value = np.unique(values, return_index=True, return_inverse=True)
    rows = np.flatnonzero(wanted)
    return np.stack([first[value[rows]], rows])


def _near_duplicates(thumbnails: Grey) -> Rows:
    """[2, P]: pairs of rows whose thumbnails pass both tests."""
    rows = np.flatnonzero(_contrast(thumbnails) >= MIN_CONTRAST)
    contrasted = thumbnails[rows]
    low, high, mirrored = _likely_pairs(contrasted)
    found = [np.empty((2, 0), dtype=np.int64)]
    for start in range(0, len(low), _CHUNK):
        part = slice(start, start + _CHUNK)
        other = contrasted[high[part]]
        other = np.where(mirrored[part, None, None], other[:, :, ::-1], other)
        alike = _correlation(contrasted[low[part]], other) >= MIN_CORRELATION
        found.append(rows[np.stack([low[part][alike], high[part][alike]])])
    return np.concatenate(found, axis=1)


def _contrast(thumbnails: Grey) -> NDArray[np.float64]:
    """[N] standard deviations, without a floating-point copy of the thumbnails."""
    mean = thumbnails.mean(axis=(1, 2))
    square = np.einsum("nij,nij->n", thumbnails, thumbnails, dtype=np.int64) / thumbnails[0:1].size
    deviation: NDArray[np.float64] = np.sqrt(np.maximum(square - mean**2, 0))
    return deviation


def difference_hash(thumbnails: Grey) -> NDArray[np.uint64]:
    """64 bits per thumbnail: where brightness rises from left to right, on a grid of 8 x 9.

    Args:
        thumbnails: uint8 [N, 16, 18].
    """
    grid = thumbnails.reshape(-1, 8, 2, 9, 2).sum(axis=(2, 4), dtype=np.int32)  # [N, 8, 9]
    rises = (grid[:, :, 1:] > grid[:, :, :-1]).reshape(-1, 64)
    return np.packbits(rises, axis=1).view(np.uint64)[:, 0]


def _likely_pairs(thumbnails: Grey) -> tuple[Rows, Rows, NDArray[np.bool_]]:
    """Rows low < high whose hashes are near, and whether one of them has to be mirrored; each [P]."""
    count = len(thumbnails)
    hashes = np.concatenate([difference_hash(thumbnails), difference_hash(thumbnails[:, :, ::-1])])  # [2N]
    codes = [np.empty(0, dtype=np.int64)]
    for left, right in _near_hashes(hashes):
        low, high = np.minimum(left % count, right % count), np.maximum(left % count, right % count)
        mirrored = (left >= count).astype(np.int64) + (right >= count)
        keep = (low < high) & (mirrored < 2)  # not a photo with its own mirror image, nor two mirror images
        codes.append(((low * count + high) * 2 + mirrored)[keep])
    pairs, mirrored = np.divmod(np.unique(np.concatenate(codes)), 2)
    low, high = np.divmod(pairs, max(count, 1))
    return low, high, mirrored.astype(bool)


def _near_hashes(hashes: NDArray[np.uint64]) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of positions within MAX_BITS that are near in the list sorted by the hash, however its bits are rotated."""
    for turn in range(_ROTATIONS):
        bits = np.uint64(turn * 64 // _ROTATIONS)
        rotated = (hashes << bits) | (hashes >> (np.uint64(64) - bits) if turn else np.uint64(0))
        order = np.argsort(rotated, kind="stable")
        ordered = hashes[order]
        for step in range(1, min(_WINDOW, len(order) - 1) + 1):
            near = np.flatnonzero(np.bitwise_count(ordered[step:] ^ ordered[:-step]) <= MAX_BITS)
            yield order[near], order[near + step]


def _correlation(left: Grey, right: Grey) -> NDArray[np.float32]:
    """Pearson correlation of each pair of thumbnails, -1..1; [P, 16, 18] x [P, 16, 18] -> [P]."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (left, right))
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.einsum("pi,pi->p", a, a) * np.einsum("pi,pi->p", b, b))
    correlation: NDArray[np.float32] = np.einsum("pi,pi->p", a, b) / lengths
    return correlation


def connected(count: int, pairs: Rows) -> Rows:
    """The smallest row that each of `count` rows is connected to, directly or over others.

    Args:
        count: N.
        pairs: [2, P] rows.

    >>> connected(5, np.array([[1, 4], [4, 2]])).tolist()
    [0, 1, 1, 3, 1]
    """
    left, right = pairs
    group = np.arange(count, dtype=np.int64)
    while True:
        low = np.minimum(group[left], group[right])
        nearer = group.copy()
        np.minimum.at(nearer, left, low)
        np.minimum.at(nearer, right, low)
        nearer = nearer[nearer]  # jump over what the others found: chains halve each round
        if np.array_equal(nearer, group):
            return group
        group = nearer
