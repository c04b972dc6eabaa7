"""Everything the stack knows of one query, and what moved its answer.

In: the query's rows and candidates, all answers, a fitted stacker. Out: an `Explanation` of plain values, for a page or
for JSON. Nothing here touches the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.errors import DataError
from engine.core.gap import rank_answers
from stacking.features import P_LANDMARK
from stacking.importance import OF_QUERY
from stacking.scales import straighten_all
from stacking.stacker import Model, Stacker
from stacking.trees import Matrix, as_matrix

SHOWN = 5  # candidates of a member: as many as make the stacker's rows by default
MOVERS = 10  # features: what one reads at a glance


@dataclass(frozen=True)
class Listed:
    """A candidate of a member: its landmark, the member's score for it, and its rank, 1 being the best."""

    landmark_id: str
    score: float
    rank: int


@dataclass(frozen=True)
class Mover:
    """A feature of a candidate, its value there, and by how much it moved the candidate's log-odds."""

    feature: str
    value: float
    contribution: float


@dataclass(frozen=True)
class Judged:
    """How the stacker came to its opinion of one candidate.

    Attributes:
        landmark_id: the candidate.
        log_odds: the mean margin of the models of the stacker's first stage; its probability is a mean of theirs.
        base: where every candidate starts; `log_odds` is this and the contributions of all features.
        movers: the features that moved it most, up or down.
    """

    landmark_id: str
    log_odds: float
    base: float
    movers: tuple[Mover, ...]


@dataclass(frozen=True)
class Explanation:
    """One query.

    Attributes:
        query: its id.
        answer: the landmark; None where no member lists any.
        confidence: of the answer.
        rank: of the answer among all, 1 being the surest; None without an answer.
        answers: how many answers are ranked.
        members: each member's best candidates.
        gate: probability that the photo shows a landmark; None without a gate.
        features: what is known of the query as a whole, whatever the candidate.
        judged: the answer, then the candidate that the stacker likes best of the others.
    """

    query: str
    answer: str | None
    confidence: float
    rank: int | None
    answers: int
    members: dict[str, tuple[Listed, ...]]
    gate: float | None
    features: dict[str, float]
    judged: tuple[Judged, ...]


def explain_answer(
    query: str,
    answers: pd.DataFrame,
    candidates: pd.DataFrame,
    rows: pd.DataFrame,
    stacker: Stacker,
    members: Sequence[str],
) -> Explanation:
    """Explain an answer.

    Args:
        query: its id.
        answers: `engine.core.tables.ANSWERS` of all queries that are ranked together.
        candidates: `engine.core.tables.CANDIDATES`, the query's among them.
        rows: the query's, of `build_rows`.
        stacker: the one to ask what moved it. Where the answer was given out of fold it came from a stacker like this
            one that had not seen the query, so this one may like another candidate better.
        members: whose candidates to show.

    Raises:
        ArtifactError: when the rows lack features of the stacker.
        DataError: when the query has no place among the answers.
    """
    own = answers[answers["id"] == query]
    if own.empty:
        raise DataError(f"'{query}' is none of {len(answers)} queries with an answer", hint="run 'engine stack' again")
    landmark = own["landmark_id"].iloc[0]
    answer = None if pd.isna(landmark) else str(landmark)
    given = answers[answers["landmark_id"].notna()]
    ranked = given["id"].to_numpy()[rank_answers(given["confidence"].to_numpy(), given["id"].to_numpy(dtype=np.str_))]
    features = {name: float(rows[name].iloc[0]) for name in rows.columns if name.startswith(OF_QUERY) and len(rows)}
    return Explanation(
        query=query,
        answer=answer,
        confidence=float(own["confidence"].iloc[0]),
        rank=None if answer is None else int(np.flatnonzero(ranked == query)[0]) + 1,
        answers=len(ranked),
        members={member: _list_best(candidates, query, member) for member in members},
        gate=features.get(P_LANDMARK),
        features=features,
        judged=_judge(rows, answer, stacker),
    )


def contributions(stacker: Stacker, rows: pd.DataFrame) -> NDArray[np.float64]:
    """What each feature adds to the log-odds of each row, the mean over the models of the first stage.

    Of a linear model it is the weight times what the straightened value has over its mean, of trees their SHAP value:
    Lundberg et al., "Consistent Individualized Feature Attribution for Tree Ensembles" (arXiv 1802.03888). So the base
    is the margin of a row of means.

    Returns:
        [N, F + 1] in the order of the stacker's features; the last column is where every row starts.

    Raises:
        ArtifactError: when the rows lack features.
        DataError: when a feature is not a finite number.
    """
    values = as_matrix(rows, stacker.features)
    straight = straighten_all(values, np.array(stacker.bounded))
    mean: NDArray[np.float64] = np.mean([_contribute(model, values, straight) for model in stacker.models], axis=0)
    return mean


def _contribute(model: Model, values: Matrix, straight: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, F + 1] of one model."""
    weights, centre = np.array(model.linear.weights), np.array(model.linear.centre)
    base = np.full(len(values), model.linear.bias + np.sum(weights * centre))
    added = np.column_stack([(straight - centre) * weights, base])
    if model.trees:
        added += lgb.Booster(model_str=model.trees).predict(values, pred_contrib=True, num_threads=1)
    return added


def _list_best(candidates: pd.DataFrame, query: str, member: str) -> tuple[Listed, ...]:
    own = candidates[(candidates["query"] == query) & (candidates["member"] == member)]
    best = own.nsmallest(SHOWN, "rank")[["landmark_id", "score", "rank"]]
    return tuple(Listed(str(name), float(score), int(rank)) for name, score, rank in best.itertuples(index=False))


def _judge(rows: pd.DataFrame, answer: str | None, stacker: Stacker) -> tuple[Judged, ...]:
    """The answer's row, then the best of the others."""
    if rows.empty:
        return ()
    added = contributions(stacker, rows)  # [N, F + 1]
    is_answer = (rows["landmark_id"] == answer).to_numpy()
    order = np.lexsort((-added.sum(axis=1), ~is_answer))[:2]
    return tuple(_describe(rows.iloc[row], added[row], stacker.features) for row in order)


def _describe(row: pd.Series, added: NDArray[np.float64], features: Sequence[str]) -> Judged:
    most = np.argsort(-np.abs(added[:-1]), kind="stable")[:MOVERS]
    movers = tuple(Mover(features[at], float(row[features[at]]), float(added[at])) for at in most)
    return Judged(str(row["landmark_id"]), float(added.sum()), float(added[-1]), movers)
