"""The stacker's table: one row per (query, candidate landmark), one column per piece of evidence.

In: the members' candidates and query features, class sizes, queries, all as tables. Out: a table of `query`,
`landmark_id` and float32 features, sorted by query, then landmark. Nothing here touches the disk.

A row's features are made from its own query alone, so an answer never depends on which other queries are asked. Every
feature is finite, so NaN always means a fault: where a member does not list a landmark, its score is its floor there
(0, or its lowest score for the query when that is negative), its inverse rank is 0, and its evidence is the lowest that
it has for the query, 0 where it lists nothing. Leaving these cells empty for LightGBM to route was no better on real
photos, and nothing but trees can read an empty cell.

| column                   | what it says of the row's landmark                                                   |
|--------------------------|--------------------------------------------------------------------------------------|
| <member>.score           | the member's score; trees read any increasing change of it alike, so no logarithm    |
| <member>.inverse_rank    | 1 for the member's best, 1/2 for its second, …; 0 where it does not list it          |
| <member>.below_best      | score minus the member's best score for the query, <= 0                              |
| <member>.above_next      | score minus the member's next lower one; 0 where it does not list it                 |
| <member>.<evidence>      | what else the member tells of it: of the members that compare photos, how near and   |
|                          | how many they are, see `zoo.photo_heads`, and how many keypoints match, see          |
|                          | `zoo.verification`; of the others nothing                                            |
| all.first, all.listed    | how many members rank it first, how many list it at all                              |
| all.mean, .max, .spread  | of the members' scores; spread is the highest minus the lowest                       |
| all.geometric            | geometric mean of the members' scores                                                |
| all.share                | all.geometric over its sum within the query                                          |
| all.balanced             | all.geometric over the square root of 1 + class size: a head trained on uneven       |
|                          | classes has learned how frequent they are, and this takes half of that back          |
| all.balanced_share       | all.balanced over its sum within the query                                           |
| all.cosine               | mean of the members' evidence `cosine`, when any has it                              |
| all.inliers              | maximum of the members' evidence `inliers`, when any has it                          |
| class.size               | training photos of the landmark                                                      |
| query.top_share          | the highest all.share of the query                                                   |
| query.min_side           | logarithm of the photo's shorter side in pixels                                      |
| query.<member>.<feature> | the member's query features; `query.gate.p_landmark` is the gate's                   |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.errors import DataError, raise_problems
from stacking.listings import CodeArray, Codebook, Listing, list_candidates, require_heard

GATE: Final = "gate"  # the member name of the gate's query features
P_LANDMARK: Final = f"query.{GATE}.p_landmark"
KEYS: Final = ("query", "landmark_id")
SCORE_FLOOR: Final = 1e-6  # a lower score is no evidence; keeps one member's 0 from vetoing the geometric mean

_MEMBER_FEATURES: Final = ("score", "inverse_rank", "below_best", "above_next")
_AGREEMENT: Final = ("all.first", "all.listed", "all.mean", "all.max", "all.spread", "all.geometric")
_MERGED: Final = ("cosine", "inliers")  # evidence that several kinds of members have
_SHARES: Final = ("all.share", "all.balanced", "all.balanced_share", "query.top_share")
_OUTSIDE: Final = ("class.size", "query.min_side")

FloatArray = NDArray[np.floating[Any]]
Sheet = Mapping[str, NDArray[np.float32]]  # feature -> its column [N], a view into the block that becomes the table


@dataclass(frozen=True, eq=False)
class _Rows:
    """The N rows to fill.

    Attributes:
        pair: [N] codes, ascending, each once.
        query: [N] codes, ascending.
        starts: [G] the first row of each query that has any.
    """

    pair: CodeArray
    query: CodeArray
    starts: NDArray[np.intp]

    def total(self, values: FloatArray) -> FloatArray:
        """[N] -> [N]: the sum over the row's query."""
        return self._spread(np.add.reduceat(values, self.starts, dtype=np.float64))

    def highest(self, values: FloatArray) -> FloatArray:
        """[N] -> [N]: the maximum over the row's query."""
        return self._spread(np.maximum.reduceat(values, self.starts))

    def _spread(self, values: FloatArray) -> FloatArray:
        return np.repeat(values, np.diff(self.starts, append=len(self.pair)))


def build_rows(
    candidates: pd.DataFrame,
    query_features: pd.DataFrame,
    class_sizes: pd.DataFrame,
    queries: pd.DataFrame,
    members: Sequence[str],
    *,
    per_member: int,
) -> pd.DataFrame:
    """Lay out the evidence: the union of each member's best candidates, a row each. The inputs' order never matters.

    A landmark that one member has among its best shows the scores of every member that lists it, at any rank.

    Args:
        candidates: `engine.core.tables.CANDIDATES` of all members in one table; other members' rows are left out.
        query_features: QUERY_FEATURES likewise, empty where a member has no such feature; the gate's are always used.
        class_sizes: fold, landmark_id, size: training photos that the fold's models saw; 0 where there is no row.
        queries: id, fold (-1: test set), width and height in pixels.
        members: whose candidates to use.
        per_member: how many of each member's best candidates make rows.

    Returns:
        N rows, N <= queries x members x per_member; none for a query for which no member lists anything.

    Raises:
        DataError: when a member says nothing of some query, something of an unknown one, or one thing twice, or when a
            score or a query feature is not a finite number.
    """
    names = sorted(members)
    book, listings = list_candidates(candidates, queries, names)
    require_heard(candidates, query_features, queries, names)
    asked = queries.set_index("id").loc[book.queries]
    said = _lay_query_features(query_features, [*names, GATE], book.queries)
    rows = _choose_rows(listings, book, per_member)

    of_members = [f"{one.member}.{name}" for one in listings for name in (*_MEMBER_FEATURES, *one.evidence)]
    merged = [f"all.{name}" for name in _MERGED if any(name in one.evidence for one in listings)]
    features = [*of_members, *_AGREEMENT, *merged, *_SHARES, *_OUTSIDE, *said]
    block = np.zeros((len(features), len(rows.pair)), dtype=np.float32)  # one block, so that it is used without a copy
    sheet = dict(zip(features, block, strict=True))
    for listing in listings:
        _fill_member(sheet, listing, rows, len(book.queries))
    _fill_agreement(sheet, names)
    _merge_evidence(sheet, listings)
    sheet["class.size"][:] = _look_up_sizes(class_sizes, asked["fold"].to_numpy(), book, rows)
    _fill_shares(sheet, rows)
    sheet["query.min_side"][:] = np.log(asked[["width", "height"]].min(axis=1).to_numpy())[rows.query]
    for feature, values in said.items():
        sheet[feature][:] = values[rows.query]

    table = pd.DataFrame(block.T, columns=features, copy=False)
    table.insert(0, "query", book.queries.take(rows.query))
    table.insert(1, "landmark_id", book.landmarks.take(book.landmark_of(rows.pair)))
    return table


def feature_names(rows: pd.DataFrame) -> tuple[str, ...]:
    """The features of a table from `build_rows`, in its order."""
    return tuple(name for name in rows.columns if name not in KEYS)


def mark_right(rows: pd.DataFrame, queries: pd.DataFrame) -> NDArray[np.bool_]:
    """The stacker's target [N]: whether the row's landmark is what its query shows.

    Args:
        rows: from `build_rows`.
        queries: id, landmark_id (null: no landmark of the training set).
    """
    shown = rows["query"].map(queries.set_index("id")["landmark_id"])
    return (rows["landmark_id"] == shown).to_numpy(dtype=np.bool_)


def _choose_rows(listings: Sequence[Listing], book: Codebook, per_member: int) -> _Rows:
    pair = np.unique(np.concatenate([listing.pair[listing.rank <= per_member] for listing in listings]))
    query = book.query_of(pair)
    return _Rows(pair, query, np.flatnonzero(np.diff(query, prepend=-1)))


def _fill_member(sheet: Sheet, listing: Listing, rows: _Rows, queries: int) -> None:
    best = np.zeros(queries, dtype=np.float32)
    best[listing.query[listing.rank == 1]] = listing.score[listing.rank == 1]
    floor = np.zeros(queries, dtype=np.float32)
    np.minimum.at(floor, listing.query, listing.score)

    at = np.searchsorted(rows.pair, listing.pair)
    shown = np.take(rows.pair, at, mode="clip") == listing.pair  # listed, and among some member's best
    at = at[shown]
    score, inverse_rank, below_best, above_next = (sheet[f"{listing.member}.{name}"] for name in _MEMBER_FEATURES)
    score[:] = floor[rows.query]
    score[at] = listing.score[shown]
    inverse_rank[at] = 1 / listing.rank[shown]
    below_best[:] = score - best[rows.query]
    above_next[at] = (listing.score - _next_scores(listing, floor))[shown]
    for name, values in listing.evidence.items():
        lowest = np.full(queries, np.inf, dtype=np.float32)
        np.minimum.at(lowest, listing.query, values)
        column = sheet[f"{listing.member}.{name}"]
        column[:] = np.where(np.isfinite(lowest), lowest, 0)[rows.query]
        column[at] = values[shown]


def _next_scores(listing: Listing, floor: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n] the member's next lower score for the same query; its floor after the last."""
    order = np.lexsort((listing.rank, listing.query))
    has_next = listing.query[order[:-1]] == listing.query[order[1:]]
    following = floor[listing.query]
    following[order[:-1][has_next]] = listing.score[order[1:][has_next]]
    return following


def _fill_agreement(sheet: Sheet, members: Sequence[str]) -> None:
    """What the members say together, accumulated so that no [members, N] copy is made."""
    first, listed, mean, highest, spread, geometric = (sheet[name] for name in _AGREEMENT)
    highest[:], lowest = -np.inf, np.full(len(highest), np.inf, dtype=np.float32)
    for member in members:
        score, inverse_rank = sheet[f"{member}.score"], sheet[f"{member}.inverse_rank"]
        first += inverse_rank == 1
        listed += inverse_rank > 0
        mean += score / len(members)
        geometric += np.log(np.maximum(score, SCORE_FLOOR)) / len(members)
        np.maximum(highest, score, out=highest)
        np.minimum(lowest, score, out=lowest)
    spread[:] = highest - lowest
    np.exp(geometric, out=geometric)


def _merge_evidence(sheet: Sheet, listings: Sequence[Listing]) -> None:
    """What the members that have cosines or inliers say together, accumulated like their scores."""
    cosines, inliers = ([sheet[f"{one.member}.{name}"] for one in listings if name in one.evidence] for name in _MERGED)
    for column in cosines:
        mean = sheet["all.cosine"]
        mean += column / len(cosines)
    for column in inliers:
        highest = sheet["all.inliers"]
        np.maximum(highest, column, out=highest)  # begins at 0, the fewest there can be


def _fill_shares(sheet: Sheet, rows: _Rows) -> None:
    geometric = sheet["all.geometric"]
    sheet["all.share"][:] = geometric / rows.total(geometric)
    sheet["query.top_share"][:] = rows.highest(sheet["all.share"])
    balanced = sheet["all.balanced"]
    balanced[:] = geometric / np.sqrt(1 + sheet["class.size"])
    sheet["all.balanced_share"][:] = balanced / rows.total(balanced)


def _look_up_sizes(class_sizes: pd.DataFrame, folds: NDArray[Any], book: Codebook, rows: _Rows) -> FloatArray:
    """[N] training photos of the row's landmark in the training part of its query's fold."""
    known, fold = np.unique(folds, return_inverse=True)  # fold: [Q]
    every = pd.MultiIndex.from_product([known, book.landmarks], names=["fold", "landmark_id"])
    sizes = class_sizes.set_index(["fold", "landmark_id"])["size"].reindex(every, fill_value=0)
    at = fold[rows.query] * len(book.landmarks) + book.landmark_of(rows.pair)  # [N] into [folds * L]
    return np.take(sizes.to_numpy(dtype=np.float32), at)


def _lay_query_features(
    query_features: pd.DataFrame, members: Sequence[str], ids: pd.Index[str]
) -> dict[str, FloatArray]:
    """Every member's query features as columns [Q] in the order of the ids; a member may have none."""
    columns: dict[str, FloatArray] = {}
    problems: list[str] = []
    for member in members:
        table = query_features[query_features["member"] == member].drop(columns="member").set_index("query")
        own = table.dropna(axis=1, how="all")  # the others are columns of other members
        problems += [
            f"query features of '{member}': '{i}' stands there twice" for i in own.index[own.index.duplicated()]
        ]
        problems += [f"query features of '{member}': '{i}' is not among the queries" for i in own.index.difference(ids)]
        laid = own.loc[~own.index.duplicated()].reindex(ids)
        for name, values in laid.items():
            columns[f"query.{member}.{name}"] = values.to_numpy(dtype=np.float32)
            if broken := int((~np.isfinite(values)).sum()):
                problems.append(f"query features of '{member}': '{name}' is missing or not finite for {broken} queries")
    raise_problems(DataError, problems, hint="make the member's scores again")
    return columns
