"""LightGBM as the stack uses it: trees that improve on given margins, and how good they are after each.

In: features [N, F], which rows are right, and a margin to start from. Out: models as LightGBM's own text. The same
input gives the same text, whatever the threads. Nothing here touches the disk.

| objective | what is lowered                                                    |
|-----------|--------------------------------------------------------------------|
| log-loss  | each row's log-loss: is this candidate right                       |
| softmax   | each query's log-loss: which candidate is right, or none           |
| hybrid    | three quarters softmax, one quarter a smooth GAP over all queries  |

Whatever was lowered, a margin is read as log-odds against "none", by `query_probability`: the stacks of two folds may
differ in their objective, and their confidences are ranked together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import StackConfig
from engine.core.errors import ArtifactError, DataError
from stacking.baselines import Predict
from stacking.features import feature_names
from stacking.objectives import (
    Right,
    Starts,
    Values,
    hybrid_gradient,
    log_loss_gradient,
    query_probability,
    query_starts,
    softmax_gradient,
)

Objective = Literal["softmax", "log-loss", "hybrid"]  # the simpler first, as `StackMethod`
OBJECTIVES: Final[tuple[Objective, ...]] = get_args(Objective)
Matrix = NDArray[np.float32]
Curve = NDArray[np.float64]

ROWS_PER_THREAD: Final = 50_000  # below, threads wait for one another: 30,000 rows on two busy cores took 6 s or 180 s
WATCH_EVERY: Final = 5  # trees: the GAP of 12 million rows takes as long as a tree
ROWS_PER_GROUP: Final = 10_000  # LightGBM refuses a larger group to rank
RANKER_TREES: Final = 100  # at most: so far down the groups a ranker looks at every pair, 66 s for 167,000 rows

_GRADIENTS: Final[Mapping[Objective, Callable[[Values, Right, Starts], tuple[Values, Values]]]] = {
    "log-loss": log_loss_gradient,
    "softmax": softmax_gradient,
    "hybrid": hybrid_gradient,
}


def as_matrix(rows: pd.DataFrame, features: tuple[str, ...]) -> Matrix:
    """The features of rows as [N, F], by name.

    Raises:
        ArtifactError: when features are missing.
        DataError: when a feature is not a finite number.
    """
    missing = [name for name in features if name not in rows.columns]
    if missing:
        raise ArtifactError(
            f"the stacker reads {len(missing)} features that these rows lack: {', '.join(missing)}",
            hint="the members changed since it was fitted; run 'engine stack' again",
        )
    first = list(rows.columns).index(features[0])
    beside = rows.iloc[:, first : first + len(features)]  # of `build_rows` a view: a copy is 2 GB of 12 million rows
    values = (beside if tuple(beside.columns) == features else rows[list(features)]).to_numpy(dtype=np.float32)
    broken = [name for name, column in zip(features, values.T, strict=True) if not np.isfinite(column).all()]
    if broken:
        raise DataError(f"features that are not finite numbers: {', '.join(broken)}", hint="make the scores again")
    return values


def threads_for(rows: int, threads: int) -> int:
    """How many threads pay off."""
    return min(threads, 1 + rows // ROWS_PER_THREAD)


def best_rows(scores: Values, starts: Starts) -> NDArray[np.intp]:
    """[G] the row of the highest score of each query, the first of equal ones."""
    highest = np.repeat(np.maximum.reduceat(scores, starts), np.diff(starts, append=len(scores)))
    places = np.where(scores == highest, np.arange(len(scores)), len(scores))
    best: NDArray[np.intp] = np.minimum.reduceat(places, starts)
    return best


def answer_gap(scores: Values, right: Right, starts: Starts) -> float:
    """The GAP of answering each query with its best row, ties in the rows' order, over the queries with a right row.

    A query whose landmark no member lists lowers the GAP of all scores alike, so it is left out here.
    """
    best = best_rows(scores, starts)
    hits = right[best][np.argsort(-scores[best], kind="stable")]
    places = np.flatnonzero(hits)
    precision = np.arange(1, len(places) + 1) / (places + 1)
    return float(precision.sum()) / max(1, int(np.count_nonzero(right)))


def bin_rows(values: Matrix, right: Right, config: StackConfig, *, threads: int) -> lgb.Dataset:
    """Rows as LightGBM keeps them, a byte for each feature, from which parts are taken without a look at the values."""
    parameters = tree_parameters(config, threads_for(len(right), threads))
    return lgb.Dataset(values, right, params=parameters, free_raw_data=True).construct()


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows to grow trees on.

    Attributes:
        data: [N] of `bin_rows`.
        right: [N].
        starts: [G] the first row of each query.
        margin: [N] log-odds to start from.
    """

    data: lgb.Dataset
    right: Right
    starts: Starts
    margin: Values

    def take(self, inside: Right) -> Sample:
        """Some of the rows, whole queries of them."""
        data = self.data.subset([])
        data.used_indices = np.flatnonzero(inside)  # which LightGBM would keep as a list, 40 bytes a row
        data.construct().set_init_score(self.margin[inside])
        return Sample(data, self.right[inside], starts_within(self.starts, inside), self.margin[inside])


def grow(
    objective: Objective, sample: Sample, held: Right, config: StackConfig, *, seed: int, threads: int
) -> tuple[lgb.Booster, Curve]:
    """Grow `config.trees` trees on some queries, and watch the GAP of the others.

    Args:
        objective: what to lower.
        sample: [N] rows.
        held: [N] those of the queries to watch, of which the trees see nothing.
        config: size of the trees, learning rate.
        seed: which features each tree sees.
        threads: how many to use; the trees do not depend on it.

    Returns:
        The model, and the GAP of the watched queries after 0, `WATCH_EVERY`, 2 `WATCH_EVERY`, ... trees.
    """
    learned, watched = sample.take(~held), sample.take(held)
    curve = [answer_gap(query_probability(watched.margin, watched.starts), watched.right, watched.starts)]

    def watch(predictions: Values, _: lgb.Dataset) -> tuple[str, float, bool]:
        scores = query_probability(predictions, watched.starts)
        curve.append(answer_gap(scores, watched.right, watched.starts))
        return ("gap", curve[-1], True)

    gradient = _GRADIENTS[objective]
    parameters = tree_parameters(config, threads_for(len(learned.right), threads)) | {
        "objective": "none",  # but ours
        "seed": seed,
        "metric": "None",
    }
    model = lgb.Booster(parameters, learned.data).add_valid(watched.data, "held")
    for number in range(1, config.trees + 1):
        model.update(fobj=lambda now, _: gradient(now, learned.right, learned.starts))
        if number % WATCH_EVERY == 0:
            model.eval_valid(watch)
    # without its rows and what was computed of them, which are many times its trees
    return lgb.Booster(model_str=model.model_to_string()), np.array(curve)


def starts_within(starts: Starts, inside: Right) -> Starts:
    """The first row of each query among some rows, whole queries of them: [G'] as positions in those rows."""
    query = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(inside)))[inside]
    return np.flatnonzero(np.diff(query, prepend=-1))


def fit_lambdarank(rows: pd.DataFrame, right: Right, config: StackConfig, *, seed: int, threads: int) -> Predict:
    """What LightGBM has for ranking, as a baseline: `grow_ranker`, whose margins are scores of any sign.

    Args:
        rows: [N] of `build_rows`.
        right: [N].
        config: size of the trees, learning rate; never more than `RANKER_TREES`.
        seed: which features each tree sees.
        threads: how many to use; the scores do not depend on it.

    Raises:
        DataError: when a feature is not a finite number.
    """
    features = feature_names(rows)
    few = config.model_copy(update={"trees": min(config.trees, RANKER_TREES)})
    grown = grow_ranker(as_matrix(rows, features), right, query_starts(rows), few, seed=seed, threads=threads)

    def predict(unseen: pd.DataFrame) -> Values:
        return add_trees(grown, as_matrix(unseen, features), np.zeros(len(unseen)), threads=threads)

    return predict


def grow_ranker(values: Matrix, right: Right, starts: Starts, config: StackConfig, *, seed: int, threads: int) -> str:
    """LightGBM's own lambdarank (Burges 2010), which ranks within groups: as many whole queries as one may hold.

    A query alone as its group would say nothing of how queries stand to one another, which is most of GAP.
    """
    sizes = np.diff(starts, append=len(right))
    number = (np.cumsum(sizes) - sizes) // (ROWS_PER_GROUP - sizes.max())  # by each query's first row, so none is full
    groups = np.bincount(number, weights=sizes).astype(np.int64)
    parameters = tree_parameters(config, threads_for(len(right), threads)) | {
        "objective": "lambdarank",
        "lambdarank_truncation_level": 1000,  # 30, the default, looks at the top of a group only: .7186 against .7536
        "seed": seed,
    }
    data = lgb.Dataset(values, right.astype(np.int64), group=groups[groups > 0], params=parameters)
    return as_text(lgb.train(parameters, data, config.trees))


def tree_parameters(config: StackConfig, threads: int) -> dict[str, Any]:
    """LightGBM's parameters that every objective shares."""
    return {
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.min_rows_in_leaf,
        "feature_fraction": config.feature_fraction,
        "lambda_l2": config.l2,
        "feature_pre_filter": False,  # else none are left of few rows, and LightGBM stops the program over that
        "deterministic": True,
        # each feature is summed by one thread: row by row, and for sparse features either way, the sums are split among
        # them, and gradients of many magnitudes then have other last digits
        "force_col_wise": True,
        "is_enable_sparse": False,
        "num_threads": threads,
        "verbosity": -1,
    }


def as_text(model: lgb.Booster, trees: int | None = None) -> str:
    """The first trees of a model as text, without what depends on the machine, so that equal ones have equal hashes."""
    return re.sub(r"\[num_threads: \d+\]", "[num_threads: 0]", model.model_to_string(num_iteration=trees))


def add_trees(text: str, values: Matrix, margin: Values, *, threads: int) -> Values:
    """[N] margins with what a model's trees add to them."""
    added: Values = lgb.Booster(model_str=text).predict(values, raw_score=True, num_threads=threads)
    return margin + added
