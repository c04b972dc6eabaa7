"""What a stack has to beat: rules that merge the members' scores without trees.

In: rows of `stacking.features.build_rows`. Out: a score for each row. A single member needs no rows, see
`stacking.answers.answer_alone`; blends tuned for GAP are in `stacking.blends`. Nothing here touches the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from engine.core.errors import ArtifactError
from stacking.features import KEYS, P_LANDMARK, SCORE_FLOOR, feature_names
from stacking.scales import add_up, find_bounded, straighten_all

VOTES: Final = 3  # of a member for a query; the winner of GLR 2020 let the three nearest photos of each model vote
VOTE_SCALE: Final = 25.0  # of cosines in the softmax of a neighbours head, as its recipe in the zoo has it
UNHEARD: Final = -6.0  # below any vote, which is at least -4 and ln(SCORE_FLOOR) / VOTE_SCALE

Predict = Callable[[pd.DataFrame], NDArray[np.float64]]
Fit = Callable[[pd.DataFrame, NDArray[np.bool_]], Predict]  # of rows [N] and which of them are right [N]


def mean_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The mean of the members' scores; where a member does not list the landmark its floor counts, which is 0."""
    return rows["all.mean"].to_numpy(dtype=np.float64)


def geometric_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The geometric mean of the members' scores: one doubter weighs more."""
    return rows["all.geometric"].to_numpy(dtype=np.float64)


def reciprocal_rank_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The mean over the members of 1 / rank, 0 where a member does not list the landmark; scores do not count.

    Cormack, Clarke and Büttcher, "Reciprocal rank fusion" (SIGIR 2009) with their k = 0: they add 60 to each rank, for
    runs of a thousand documents, and that would tell a first from a fifth rank by a fifteenth.
    """
    ranks = rows[[f"{member}.inverse_rank" for member in list_members(rows)]].to_numpy(dtype=np.float64)  # [N, M]
    return add_up(ranks.T) / ranks.shape[1]


def gated_mean_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The mean times the gate's probability that the photo shows a landmark."""
    return mean_score(rows) * _gate(rows)


def gated_geometric_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The geometric mean times the gate's probability that the photo shows a landmark."""
    return geometric_score(rows) * _gate(rows)


def gated_reciprocal_rank_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The mean reciprocal rank times the gate's probability that the photo shows a landmark."""
    return reciprocal_rank_score(rows) * _gate(rows)


def glr2020_winner_score(rows: pd.DataFrame) -> NDArray[np.float64]:
    """How the winner of GLR 2020 ranked: votes of near photos, less how near the query is to photos of nothing.

    Henkel and Singer, "Supporting large-scale image recognition with out-of-domain samples" (arXiv 2010.01650), and the
    notebook blend_ranking of their code: with A the cosine of query and training photo in 0..1, B the training photo's
    mean cosine to its 5 nearest photos of nothing and C the query's to its 10 nearest, each model's three photos of the
    greatest A - B vote for their landmarks with it; the landmark of the greatest sum of votes is the answer, and that
    sum less C the confidence.

    What differs here: a vote is that of a landmark's nearest photo, so no landmark has two votes of one member, and it
    votes when it is among the member's three best landmarks. Where a member does not tell its cosines, A - B of its
    best landmark is its trust + C, and that of others is lower by the difference of their logarithmic scores, which in
    a softmax is `VOTE_SCALE` times that of the cosines. B and C are what the zoo's neighbours heads tell, over 5 photos
    and seen from the centre of the training photos. C is the mean over the members, not of joined embeddings. Members
    without neighbours have no vote, and a landmark without a vote comes after all others.

    Args:
        rows: [N], with some member of `list_winner_members`.
    """
    members = list_winner_members(rows)
    votes = np.array([_vote_of(rows, member) for member in members])  # [M, N], NaN where there is none
    total = np.where(np.isnan(votes).all(axis=0), UNHEARD * len(members), add_up(np.nan_to_num(votes)))
    nothing = rows[[f"query.{member}.none_cosine" for member in members]].to_numpy(dtype=np.float64)  # [N, M]
    return total - add_up(nothing.T) / len(members)


def list_members(rows: pd.DataFrame) -> tuple[str, ...]:
    """The members that the rows are of, sorted."""
    ranks = [name.removesuffix(".inverse_rank") for name in rows.columns if name.endswith(".inverse_rank")]
    return tuple(sorted(name for name in ranks if not name.startswith("query.")))


def list_neighbour_members(rows: pd.DataFrame) -> tuple[str, ...]:
    """The members that compare photos: those that tell of a query how far to trust its nearest, or their cosines."""
    told = ("query.{}.trust", "{}.cosine")
    return tuple(name for name in list_members(rows) if any(column.format(name) in rows.columns for column in told))


def list_winner_members(rows: pd.DataFrame) -> tuple[str, ...]:
    """The members that tell how near a query and the photos near it are to photos of nothing."""
    told = ("query.{}.trust", "query.{}.none_cosine", "query.{}.nearest_none_cosine")
    return tuple(name for name in list_members(rows) if all(column.format(name) in rows.columns for column in told))


def _vote_of(rows: pd.DataFrame, member: str) -> NDArray[np.float64]:
    """[N] the member's A - B; NaN where the landmark is not among its best."""

    def read(name: str) -> NDArray[np.float64]:
        return rows[name].to_numpy(dtype=np.float64)

    if f"{member}.cosine" in rows.columns:
        own = f"{member}.support_none_cosine"
        of_photo = read(own if own in rows.columns else f"query.{member}.nearest_none_cosine")
        vote = np.clip(read(f"{member}.cosine"), 0, 1) - of_photo
    else:
        score = read(f"{member}.score")
        best = np.maximum(score - read(f"{member}.below_best"), SCORE_FLOOR)
        behind = np.log(np.maximum(score, SCORE_FLOOR) / best) / VOTE_SCALE
        vote = read(f"query.{member}.trust") + read(f"query.{member}.none_cosine") + behind
    return np.where(read(f"{member}.inverse_rank") * VOTES > 1 - 1e-6, vote, np.nan)  # ranks are kept as float32


def _gate(rows: pd.DataFrame) -> NDArray[np.float64]:
    return rows[P_LANDMARK].to_numpy(dtype=np.float64)


_RULES: Final[Mapping[str, Predict]] = {
    "mean": mean_score,
    "geometric-mean": geometric_score,
    "rank-mean": reciprocal_rank_score,
}
_GATED_RULES: Final[Mapping[str, Predict]] = {
    "gated-mean": gated_mean_score,
    "gated-geometric-mean": gated_geometric_score,
    "gated-rank-mean": gated_reciprocal_rank_score,
}
_WINNER_RULES: Final[Mapping[str, Predict]] = {"glr2020-winner": glr2020_winner_score}


def choose_rules(rows: pd.DataFrame) -> Mapping[str, Predict]:
    """The rules that can be applied to these rows, by name.

    The gated ones only where there was a gate, the winner's only where a member knows of photos of nothing.
    """
    gated = _GATED_RULES if P_LANDMARK in rows.columns else {}
    return {**_RULES, **gated, **(_WINNER_RULES if list_winner_members(rows) else {})}


@dataclass(frozen=True, eq=False)
class LogisticStack:
    """A logistic regression over the same features as the stacker's.

    Attributes:
        features: the columns it reads, in its order.
        bounded: [F] which of them lay within 0..1, so that their logit is taken.
        model: scikit-learn's pipeline.
    """

    features: tuple[str, ...]
    bounded: NDArray[np.bool_]
    model: Any

    def predict(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """The probability that each row's landmark is what its query shows: [N], 0..1.

        Raises:
            ArtifactError: when features are missing.
        """
        missing = [name for name in self.features if name not in rows.columns]
        if missing:
            raise ArtifactError(f"the logistic stack reads features that these rows lack: {', '.join(missing)}")
        values = rows[list(self.features)].to_numpy(dtype=np.float64)
        probability: NDArray[np.float64] = self.model.predict_proba(straighten_all(values, self.bounded))[:, 1]
        return probability


def fit_logistic(rows: pd.DataFrame, right: NDArray[np.bool_]) -> LogisticStack:
    """Learn which candidates are right with a logistic regression on standardised logits.

    Args:
        rows: [N] of `build_rows`.
        right: [N], some of both kinds.
    """
    features = feature_names(rows)
    order = np.lexsort([rows[key].rank(method="dense") for key in reversed(KEYS)])  # so that theirs never matters
    values = rows[list(features)].to_numpy(dtype=np.float64)[order]
    bounded = find_bounded(values)
    # newton-cholesky: exact in some ten steps where rows far outnumber features
    model = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))
    return LogisticStack(features, bounded, model.fit(straighten_all(values, bounded), right[order]))
