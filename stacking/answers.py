"""Scored rows to answers: the best candidate of each query, and nothing blanked.

In: rows of `stacking.features.build_rows` and a score for each. Out: the table answers, a row for every query, sorted
by id. Nothing here touches the disk.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def pick_answers(
    rows: pd.DataFrame, scores: NDArray[np.float64], queries: pd.DataFrame, *, decided_by: str
) -> pd.DataFrame:
    """Answer each query with its best candidate.

    Of equal scores the higher mean of the members' scores wins, then the smaller landmark id.

    Args:
        rows: [N] of `build_rows`, all rows of each query.
        scores: [N], which become the confidences.
        queries: its column id names the queries to answer.
        decided_by: what made the scores, for the answers' column of that name.

    Returns:
        `engine.core.tables.ANSWERS`; a query with no candidate has no landmark and confidence 0.
    """
    order = np.lexsort((rows["landmark_id"].rank(method="dense"), -rows["all.mean"], -scores))
    best = rows[["query", "landmark_id"]].iloc[order].assign(confidence=scores[order]).drop_duplicates("query")
    return _fill_in(best, queries, decided_by)


def answer_alone(candidates: pd.DataFrame, member: str, queries: pd.DataFrame) -> pd.DataFrame:
    """Answer each query with one member's own best candidate and its own score.

    Args:
        candidates: `engine.core.tables.CANDIDATES`.
        member: whose.
        queries: its column id names the queries to answer.

    Returns:
        As `pick_answers`; the confidence is on the member's scale.
    """
    best = candidates[(candidates["member"] == member) & (candidates["rank"] == 1)]
    return _fill_in(best.rename(columns={"score": "confidence"}), queries, member)


def _fill_in(best: pd.DataFrame, queries: pd.DataFrame, decided_by: str) -> pd.DataFrame:
    ids = pd.Index(queries["id"], name="id").sort_values()
    answers = best.set_index("query")[["landmark_id", "confidence"]].reindex(ids)
    answers["confidence"] = answers["confidence"].astype(np.float64).fillna(0.0)
    return answers.assign(decided_by=decided_by).reset_index()
