"""Candidates as sorted integer codes, checked: what features are made from without touching a text again.

In: the tables candidates and query features, and the queries they have to be about. Out: a `Listing` of each member.
Nothing here touches the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.errors import DataError, raise_problems
from engine.core.tables import CANDIDATES

CodeArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class Codebook:
    """Ids and their codes: a code is the position in the sorted ids.

    Attributes:
        queries: [Q] ids, sorted.
        landmarks: [L] ids, sorted.
    """

    queries: pd.Index[str]
    landmarks: pd.Index[str]

    def pair(self, query: CodeArray, landmark: CodeArray) -> CodeArray:
        """One number for a query and a landmark; numbers sort by query, then landmark."""
        return query * len(self.landmarks) + landmark

    def query_of(self, pair: CodeArray) -> CodeArray:
        """The query's code in a pair."""
        return pair // len(self.landmarks)

    def landmark_of(self, pair: CodeArray) -> CodeArray:
        """The landmark's code in a pair."""
        return pair % len(self.landmarks)


@dataclass(frozen=True, eq=False)
class Listing:
    """One member's candidates, n of them, sorted by pair.

    Attributes:
        member: its name.
        pair: [n] codes, ascending, each once.
        query: [n] codes.
        score: [n] finite.
        rank: [n], 1 is the member's best for the query.
        evidence: what else the member tells of each candidate, [n] by name, finite; the names are sorted.
    """

    member: str
    pair: CodeArray
    query: CodeArray
    score: NDArray[np.float32]
    rank: NDArray[np.integer[Any]]
    evidence: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def list_candidates(
    candidates: pd.DataFrame, queries: pd.DataFrame, members: Sequence[str]
) -> tuple[Codebook, list[Listing]]:
    """Sort each member's candidates by query and landmark.

    Args:
        candidates: `engine.core.tables.CANDIDATES` of all members in one table; other members' rows are left out. A
            further column is evidence of the members that have it, and empty for the others.
        queries: its column id.
        members: whose candidates to list, in this order.

    Raises:
        DataError: when a query is given twice, a candidate's query is not among the queries, a member lists a landmark
            twice for one query, or a score or a piece of evidence is not a finite number.
    """
    tables = [candidates[candidates["member"] == member] for member in members]
    landmarks = pd.Index(pd.concat([table["landmark_id"] for table in tables]).unique()).sort_values()
    book = Codebook(pd.Index(queries["id"]).sort_values(), landmarks)
    repeated = book.queries[book.queries.duplicated()]
    raise_problems(DataError, [f"queries: id '{i}' stands there twice" for i in repeated])
    raise_problems(
        DataError,
        [line for member, table in zip(members, tables, strict=True) for line in _misfits(member, table, book)],
        hint="make the member's scores again",
    )
    return book, [_list_member(member, table, book) for member, table in zip(members, tables, strict=True)]


def require_heard(
    candidates: pd.DataFrame, query_features: pd.DataFrame, queries: pd.DataFrame, members: Sequence[str]
) -> None:
    """Refuse members that have neither a candidate nor a feature for some query: their scores are of another data set.

    Raises:
        DataError: with counts.
    """
    ids = pd.Index(queries["id"])
    problems = []
    for member in members:
        spoken = [table.loc[table["member"] == member, "query"] for table in (candidates, query_features)]
        silent = ids.difference(pd.Index(pd.concat(spoken)))
        if len(silent):
            problems.append(f"'{member}' says nothing about {len(silent)} of {len(ids)} queries, first '{silent[0]}'")
    raise_problems(DataError, problems, hint="make the member's scores again")


def _misfits(member: str, table: pd.DataFrame, book: Codebook) -> list[str]:
    """What keeps a member's candidates from being listed, one line each."""
    unknown = table.loc[book.queries.get_indexer(pd.Index(table["query"])) < 0, "query"].unique()
    twice = table[table.duplicated(["query", "landmark_id"])]
    problems = [
        *(f"candidates of '{member}': '{query}' is not among the queries" for query in unknown),
        *(f"candidates of '{member}': '{r.query}' lists landmark '{r.landmark_id}' twice" for r in twice.itertuples()),
    ]
    broken = (~np.isfinite(table[["score", *_evidence_names(table)]])).sum()
    return problems + [
        f"candidates of '{member}': '{name}' is missing or not finite for {count} of {len(table)}"
        for name, count in broken[broken > 0].items()
    ]


def _evidence_names(table: pd.DataFrame) -> list[str]:
    """The further columns of a member's candidates; those that are empty throughout are other members'."""
    return sorted(table.columns[table.notna().any()].difference(pd.Index(CANDIDATES.columns)))


def _list_member(member: str, table: pd.DataFrame, book: Codebook) -> Listing:
    query = book.queries.get_indexer(pd.Index(table["query"])).astype(np.int64)
    landmark = book.landmarks.get_indexer(pd.Index(table["landmark_id"])).astype(np.int64)
    pair = book.pair(query, landmark)
    order = np.argsort(pair)
    score, rank = table["score"].to_numpy(dtype=np.float32)[order], table["rank"].to_numpy()[order]
    evidence = {name: table[name].to_numpy(dtype=np.float32)[order] for name in _evidence_names(table)}
    return Listing(member, pair[order], query[order], score, rank, evidence)
