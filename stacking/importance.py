"""Which features the stack leans on: by the gain of its trees' splits, and by the GAP that is lost without them.

In: a fitted stack's models, or rows and a `Fit`. Out: plain values, for a table or for JSON. Nothing here touches the
disk.

Gain says what the trees used while they were fitted. Permutation says what unseen queries would lose: a feature's
values are dealt out anew among the queries of a held-out fold, so that it keeps its distribution and loses its meaning,
and models that were fitted without that fold answer. Breiman, "Random Forests" (2001), section 10, with GAP as the
loss. Features that say the same stand in for one another, so permute them as a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import ValidationConfig
from engine.core.gap import score_queries
from engine.core.progress import Advance
from stacking.answers import pick_answers
from stacking.baselines import Fit, Predict
from stacking.evaluate import cross_predict
from stacking.scoring import lay_answers

OF_QUERY = "query."  # begins the name of a feature that is the same in all rows of a query


@dataclass(frozen=True)
class Importance:
    """What is lost without a group of features.

    Attributes:
        name: the group's.
        features: how many it has.
        loss: the mean over the repeats of the GAP minus the GAP with the group permuted; about 0, or a little below,
            where nothing hangs on it.
        spread: the standard deviation over the repeats; 0 for a single one.
    """

    name: str
    features: int
    loss: float
    spread: float


def measure_gain(features: Sequence[str], models: Sequence[str]) -> dict[str, float]:
    """Each feature's share of what all splits gained, the mean over the models.

    Args:
        features: of the models, in their order.
        models: LightGBM models as text, at least one.

    Returns:
        feature -> 0..1, largest first, 1 in sum; all 0 where no tree splits.
    """
    shares = [_normalise(lgb.Booster(model_str=model).feature_importance("gain")) for model in models]
    share = pd.Series(np.mean(shares, axis=0), index=list(features))
    return {str(name): float(value) for name, value in share.sort_values(ascending=False, kind="stable").items()}


def _normalise(gain: NDArray[np.float64]) -> NDArray[np.float64]:
    return gain / (gain.sum() or 1.0)


def group_features(features: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Features by whom they come from: a member, its query features included, the gate, `all`, `class` or `query`.

    >>> group_features(["a.score", "all.mean", "query.a.max", "query.min_side"])
    {'a': ('a.score', 'query.a.max'), 'all': ('all.mean',), 'query': ('query.min_side',)}
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name in features:
        group = name.removeprefix(OF_QUERY).rpartition(".")[0] or "query"  # a member's name may have dots
        groups[group] = (*groups.get(group, ()), name)
    return groups


def permute_groups(
    rows: pd.DataFrame,
    queries: pd.DataFrame,
    fit: Fit,
    groups: Mapping[str, Sequence[str]],
    config: ValidationConfig,
    *,
    repeats: int,
    rng: np.random.Generator,
    advance: Advance = lambda *_: None,
) -> list[Importance]:
    """The GAP that is lost when groups of features are permuted among the queries of each held-out fold.

    Models are fitted once for every fold, and predict once for every group and repeat.

    Args:
        rows: [N] of `build_rows`.
        queries: id, fold, landmark_id.
        fit: makes a model of rows and which of them are right.
        groups: name -> features, as of `group_features`, or each feature alone.
        config: prevalence.
        repeats: permutations of each group, at least 1.
        rng: where they come from.
        advance: told of each group.

    Returns:
        One for each group, the largest loss first.

    Raises:
        DataError: as `cross_predict`.
    """
    held: list[tuple[pd.DataFrame, Predict]] = []

    def keep(learned: pd.DataFrame, right: NDArray[np.bool_]) -> Predict:
        predict = fit(learned, right)

        def remember(part: pd.DataFrame) -> NDArray[np.float64]:
            held.append((part, predict))
            return predict(part)

        return remember

    def score(asked: pd.DataFrame, scores: NDArray[np.float64]) -> float:
        answers = pick_answers(asked, scores, queries, decided_by="permuted")
        return score_queries(lay_answers(answers, queries, config))

    whole = score(rows, cross_predict(rows, queries, keep))
    asked = pd.concat([part for part, _ in held])

    def lose(features: Sequence[str]) -> float:
        scores = [predict(permute_features(part, features, rng)) for part, predict in held]
        return whole - score(asked, np.concatenate(scores))

    losses = {}
    for name, features in groups.items():
        losses[name] = np.array([lose(features) for _ in range(repeats)])
        advance(1, name)
    found = [
        Importance(name, len(groups[name]), float(loss.mean()), float(loss.std(ddof=1)) if repeats > 1 else 0.0)
        for name, loss in losses.items()
    ]
    return sorted(found, key=lambda each: (-each.loss, each.name))


def permute_features(rows: pd.DataFrame, features: Sequence[str], rng: np.random.Generator) -> pd.DataFrame:
    """Rows with some features dealt out anew, together: query features among queries, the others among rows.

    Args:
        rows: [N] of `build_rows`; they are left as they are.
        features: columns; what begins with `OF_QUERY` stays the same in all rows of a query.
        rng: where the permutations come from.
    """
    _, first, query = np.unique(rows["query"].to_numpy(dtype=np.str_), return_index=True, return_inverse=True)
    taken = {True: rng.permutation(first)[query], False: rng.permutation(len(rows))}
    return rows.assign(**{name: rows[name].to_numpy()[taken[name.startswith(OF_QUERY)]] for name in features})
