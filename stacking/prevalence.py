"""When fewer or more photos show a known landmark than in the folds: confidences corrected for it, and what that wins.

In: rows of `stacking.features.build_rows` with the stack's score of each, answers with calibrated confidences, queries
with folds and truth. Out: P(the query shows a landmark that its models know), out of fold or by a stacker of whole
queries to keep; answers with other confidences; a sensitivity curve. Nothing here touches the disk.

The stack's confidence is right for the folds' share of landmarks, and where nearly every photo shows none it is too
high, most of all for photos that hardly look like landmarks: it is their order against the others that GAP punishes.

A correction to few landmarks hangs on how well presence is told from certainty, so it can lose where there are few
photos to learn that from: look at the sensitivity curve first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import StackConfig, ValidationConfig
from engine.core.errors import DataError
from engine.core.gap import Difference, bootstrap_difference, score_queries
from engine.core.progress import Advance
from stacking.features import KEYS, feature_names
from stacking.fitting import try_methods
from stacking.scoring import lay_answers
from stacking.stacker import Stacker

SHARES: Final = (0.03, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)  # from few, as in the challenge's test sets, to most

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Sensitivity:
    """What the answers are worth where another share of the queries shows a known landmark.

    Attributes:
        prevalence: that share, between 0 and 1.
        plain: GAP of the answers as they are.
        corrected: GAP with the confidences corrected to that share.
        difference: corrected minus plain, over the same resamples.
    """

    prevalence: float
    plain: float
    corrected: float
    difference: Difference


def query_table(rows: pd.DataFrame, scores: Values) -> pd.DataFrame:
    """What is known of each query as a whole. The rows' order never matters.

    | column           | what it says                                                                          |
    |------------------|---------------------------------------------------------------------------------------|
    | query            | its id, ascending                                                                     |
    | stack.best       | the best candidate's score                                                            |
    | stack.second     | the runner-up's; 0 where there is none                                                |
    | stack.total      | s / (1 + s) for the sum s of all candidates' scores: its logit is the logarithm of s  |
    | query.*          | as in the rows: the gate's p_landmark, the members' query features                    |
    | best.*, second.* | what else the rows of these two candidates say; 0 where there is no second            |

    Args:
        rows: [N] of `build_rows`.
        scores: [N] of the stack, 0..1.

    Returns:
        A row for each query that has a candidate.
    """
    falling = rows[list(KEYS)].assign(score=scores).reset_index(drop=True)
    falling = falling.sort_values(["query", "score", "landmark_id"], ascending=[True, False, True])
    of_query = falling.groupby("query")
    total, place = of_query["score"].sum(), of_query.cumcount()
    of_queries = [name for name in rows.columns if name.startswith("query.")]
    of_candidates = [name for name in feature_names(rows) if name not in of_queries]

    def at(position: int) -> pd.DataFrame:
        chosen = falling[place == position]
        found = rows.iloc[chosen.index].assign(score=chosen["score"].to_numpy())
        return found.drop(columns="landmark_id").set_index("query").reindex(total.index, fill_value=0)

    best, second = at(0), at(1)
    return pd.concat(
        [
            pd.DataFrame({"stack.best": best["score"], "stack.second": second["score"]}),
            (total / (1 + total)).rename("stack.total"),
            best[of_queries],
            best[of_candidates].add_prefix("best."),
            second[of_candidates].add_prefix("second."),
        ],
        axis=1,
    ).reset_index()


def fit_presence(
    table: pd.DataFrame, queries: pd.DataFrame, config: StackConfig, *, seed: int, threads: int
) -> Stacker:
    """Learn which queries show a landmark that their models know, by the stack's own method log-loss.

    Args:
        table: [Q] of `query_table`: to a stacker, queries of one candidate that is right where a landmark is shown.
        queries: of all of these: id, landmark_id, group of duplicates.
        config: sizes and numbers of the trees.
        seed: of `stacking.fitting.try_methods`.
        threads: how many to use; what is fitted does not depend on it.

    Returns:
        What predicts P(a known landmark is shown) for the rows of such a table.

    Raises:
        DataError: when all queries show one, or none does.
    """
    asked = queries.set_index("id").loc[table["query"]]
    shows = asked["landmark_id"].notna().to_numpy()
    if shows.all() or not shows.any():
        raise DataError(
            f"{np.count_nonzero(shows)} of {len(shows)} queries show a known landmark: there is nothing to tell apart",
            hint="add photos without a landmark (train_nonlandmark.csv), or do not correct for prevalence",
        )
    config = config.model_copy(update={"method": "log-loss"})
    [trial] = try_methods(table, shows, asked["group"].to_numpy(), config, seed=seed, threads=threads)
    return trial.stacker


def tell_presence(teller: Stacker, table: pd.DataFrame, *, threads: int) -> pd.Series[float]:
    """The presence of each query of a `query_table`, 0..1, by query id.

    Args:
        teller: of `fit_presence`.
        table: [Q].
        threads: how many to use; the numbers do not depend on it.
    """
    return pd.Series(teller.predict(table, threads=threads), index=table["query"], name="presence")


def cross_presence(
    table: pd.DataFrame, queries: pd.DataFrame, config: StackConfig, *, seed: int, threads: int, advance: Advance
) -> pd.Series[float]:
    """The presence of each query by a classifier that was fitted on the other folds' queries.

    Args:
        table: [Q'] of `query_table`, by the stack's scores out of fold.
        queries: id, fold, landmark_id (null: no landmark that the query's models know), group.
        config: of `fit_presence`.
        seed: likewise.
        threads: likewise.
        advance: told of each fold.

    Returns:
        [Q], 0..1, by query id, in the queries' order; 0 for a query without a candidate, of which nothing is known.

    Raises:
        DataError: when the queries outside some fold all show a known landmark, or none of them does.
    """
    fold = table["query"].map(queries.set_index("id")["fold"])
    parts = []
    for held in fold.unique():
        teller = fit_presence(table[fold != held], queries, config, seed=seed, threads=threads)
        parts.append(tell_presence(teller, table[fold == held], threads=threads))
        advance(1, "")
    return pd.concat(parts).reindex(queries["id"], fill_value=0.0)


def can_be_told(queries: pd.DataFrame) -> bool:
    """Whether queries of both kinds stand outside every fold: id, fold, landmark_id."""
    shows, fold = queries["landmark_id"].notna(), queries["fold"]
    return all(shows[fold != held].nunique() == 2 for held in fold.unique())


def correct_confidence(p: Values, presence: Values, *, trained: float, wanted: float) -> Values:
    """P(the answer is right) where another share of the queries shows a known landmark.

    An answer can only be right where a known landmark is shown: P(right) = P(shown) * P(right | shown). Take it that
    only the share changes, not what photos of either kind look like (prior shift). Then P(right | shown) stays, and by
    Bayes the odds of "shown" are multiplied by the new odds of the share over the old ones, which is 1 / rho:

        L = max(p, presence)                      since being right implies being shown
        rho = (1 - wanted) / wanted * trained / (1 - trained)
        P'(shown) = L / (L + (1 - L) rho)
        P'(right) = P'(shown) * p / L = p / (L + (1 - L) rho)

    It rises with p for a fixed presence, and never leaves 0..1. Prior shift: Saerens, Latinne and Decaestecker,
    "Adjusting the outputs of a classifier to new a priori probabilities" (2002, doi 10.1162/089976602753284446),
    equation 2.4.

    >>> p, presence = np.array([0.4, 0.4]), np.array([0.9, 0.5])
    >>> correct_confidence(p, presence, trained=0.5, wanted=0.5)
    array([0.4, 0.4])
    >>> correct_confidence(p, presence, trained=0.5, wanted=0.1).round(3)  # rho = 9
    array([0.222, 0.08 ])

    Args:
        p: [N] confidences, calibrated, 0..1.
        presence: [N], 0..1.
        trained: the share among the queries that both were learned from, between 0 and 1.
        wanted: the share among the queries that are asked, likewise.

    Returns:
        [N], 0..1.

    Raises:
        DataError: when a share is not between 0 and 1.
    """
    if not (0 < trained < 1 and 0 < wanted < 1):
        raise DataError(f"the shares {trained} and {wanted} of landmark photos have to lie between 0 and 1")
    rho = (1 - wanted) * trained / (wanted * (1 - trained))  # exactly 1 where nothing changes
    shown = np.maximum(p, presence)
    corrected: Values = p / (shown + (1 - shown) * rho)
    return corrected


def correct_answers(
    answers: pd.DataFrame, presence: pd.Series[float], *, trained: float, wanted: float
) -> pd.DataFrame:
    """The answers with their confidences corrected to another share of landmark photos; labels stay.

    Args:
        answers: `engine.core.tables.ANSWERS`, calibrated.
        presence: 0..1, by query id, in any order; a query that is missing has 0.
        trained: of `correct_confidence`.
        wanted: likewise.
    """
    shown = np.asarray(presence.reindex(answers["id"], fill_value=0.0), dtype=np.float64)
    p = answers["confidence"].to_numpy()
    return answers.assign(confidence=correct_confidence(p, shown, trained=trained, wanted=wanted))


def sensitivity(
    answers: pd.DataFrame,
    calibrated: pd.DataFrame,
    queries: pd.DataFrame,
    presence: pd.Series[float],
    prevalences: Sequence[float],
    config: ValidationConfig,
    *,
    seed: int,
) -> list[Sensitivity]:
    """The GAP at each of some shares of landmark photos, without and with the correction to that share.

    Args:
        answers: `engine.core.tables.ANSWERS`, out of fold, as the stack ranks them: what stays without a correction.
        calibrated: the same with probabilities that they are right: what is corrected.
        queries: id, and of `stacking.scoring.weigh_queries`.
        presence: of `cross_presence`.
        prevalences: the shares, e.g. `SHARES`; the queries are weighted to stand for each.
        config: resamples and level of the intervals, and the share of unseen landmarks.
        seed: of the resamples, which are the same for every share.

    Raises:
        DataError: when a share is not between 0 and 1, or the queries are all of one kind.
    """
    shows = queries["landmark_id"].notna().to_numpy()
    curve = []
    for share in prevalences:
        weighed = config.model_copy(update={"prevalence": share})
        plain = lay_answers(answers, queries, weighed)
        changed = correct_answers(calibrated, presence, trained=float(shows.mean()), wanted=share)
        corrected = lay_answers(changed, queries, weighed)
        difference = bootstrap_difference(
            corrected,
            plain,
            resamples=config.bootstrap,
            level=config.confidence_level,
            rng=np.random.default_rng(seed),
        )
        curve.append(Sensitivity(share, score_queries(plain), score_queries(corrected), difference))
    return curve
