"""The queries that cost most: how much the GAP would rise were a query's one answer perfect.

In: answers, queries with their truth, the candidates. Out: a table, the most costly query first. Nothing here touches
the disk.

| kind                           | the perfect answer                                                              |
|--------------------------------|---------------------------------------------------------------------------------|
| confident but shows nothing    | the same, ranked last: no landmark that the models know is there to be named    |
| wrong landmark                 | the right landmark in the same place                                            |
| not listed by any member       | likewise, though no candidate could have been it                                |
| right but ranked low           | the same, ranked first                                                          |

With the answers in the order of the ranking, w their weights, N and R the running weights of all and of the right ones,
M * GAP = sum over right j of w_j R_j / N_j. Changing answer i by a weight u of its own changes R, N or both by u for
all j after it, or before it, so every rise is a sum over one side of i: prefix sums, one pair for each distinct weight.
Costs are each query's alone and do not add up: once one answer is mended, another is worth less or more.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.gap import ScoredQueries, align, rank_answers
from stacking.features import mark_right

NOTHING: Final = "confident but shows nothing"
WRONG: Final = "wrong landmark"
UNLISTED: Final = "not listed by any member"
LOW: Final = "right but ranked low"
Values = NDArray[np.floating[Any]]


def find_costs(
    answers: pd.DataFrame, queries: pd.DataFrame, candidates: pd.DataFrame, *, weights: Values | None = None
) -> pd.DataFrame:
    """What each imperfect answer costs.

    Args:
        answers: `engine.core.tables.ANSWERS`; a query without an answer is mended with the confidence 0 that it has.
        queries: id, landmark_id (null: no landmark that the query's models know).
        candidates: query and landmark_id of all that was listed: `engine.core.tables.CANDIDATES`, or the stacker's rows
            for what it was shown of them.
        weights: [Q] in the queries' order, of few distinct values, as `stacking.scoring.weigh_queries` gives them.

    Returns:
        id, kind, answer (null: none), truth (null: none), confidence, cost (of GAP, above 0), the highest cost first;
        queries that cost nothing are left out.

    Raises:
        DataError: as `engine.core.gap.align`.
    """
    laid = align(answers, queries, weights=weights)
    listed = queries["id"].isin(candidates.loc[mark_right(candidates, queries), "query"]).to_numpy()
    kind = np.select([laid.correct, ~laid.has_landmark, listed], [LOW, NOTHING, WRONG], default=UNLISTED)
    table = pd.DataFrame(
        {
            "id": queries["id"].to_numpy(),
            "kind": kind,
            "answer": _or_none(queries["id"].map(answers.set_index("id")["landmark_id"])),
            "truth": _or_none(queries["landmark_id"]),
            "confidence": laid.confidence,
            "cost": measure_costs(laid),
        }
    )
    costly = table[table["cost"] > 0]
    return costly.sort_values(["cost", "id"], ascending=[False, True], ignore_index=True)


def _or_none(names: pd.Series[Any]) -> pd.Series[Any]:
    """[Q] with None for what is missing, which JSON knows, and not NaN, which it does not."""
    return names.reset_index(drop=True).astype(object).where(names.notna().to_numpy(), None)


def measure_costs(queries: ScoredQueries) -> NDArray[np.float64]:
    """How much the GAP would rise were one answer perfect, for each query: [Q], >= 0; 0 where none shows a landmark."""
    order = rank_answers(queries.confidence, queries.ids)  # of all: one without an answer has a place to be put in
    answered, right, shown = queries.answered[order], queries.correct[order], queries.has_landmark[order]
    weight = queries.weights[order].astype(np.float64)
    seen, hits = np.cumsum(weight * answered), np.cumsum(weight * right)  # N and R, [Q]
    counted = weight * right
    precision = _ratio(hits, seen)
    rise = np.zeros(len(order))
    for own in np.unique(weight[weight > 0]):
        alike = weight == own
        more = _ratio(hits + own, seen + own)  # one right answer more before it
        later = _after(counted * (more - precision))
        changes = [
            (right, own * (1 - precision) + _before(counted * (more - precision))),
            (~right & shown & answered, own * _ratio(hits + own, seen) + own * _after(_ratio(counted, seen))),
            (~right & shown & ~answered, own * more + later),
            (~right & ~shown & answered, _after(counted * (_ratio(hits, seen - own) - precision))),
        ]
        for kind, change in changes:
            rise[alike & kind] = change[alike & kind]
    costs = np.zeros(len(order))
    if queries.positives > 0:
        costs[order] = rise / queries.positives
    return costs


def _ratio(part: Values, whole: Values) -> Values:
    """Quotients; 0 where the whole is not above 0, as before the first answer that weighs something."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _after(values: Values) -> Values:
    """The sum of all that come after each, [Q]; exactly 0 where they are."""
    return np.append(np.cumsum(values[:0:-1])[::-1], 0.0)


def _before(values: Values) -> Values:
    return np.append(0.0, np.cumsum(values[:-1]))
