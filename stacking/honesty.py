"""Self-checks of the validation: shuffled labels teach nothing, and pictures that two folds share decide nothing.

In: rows and a `Fit`; the tables catalog and folds; how near photos of other folds lie. Out: plain values, for a table
or for JSON. Nothing here touches the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import ValidationConfig
from engine.core.gap import score_queries
from stacking.answers import pick_answers
from stacking.baselines import Fit
from stacking.scoring import draw_interval, lay_answers, score_fit, score_part

DRAWS: Final = 100  # of chance: its mean is known to a tenth of its spread
TOLERANCE: Final = 4.0  # spreads above chance that are still chance; of 50 honest stacks the highest had 2.4
# Cosines of lookalikes. Seen on landmarks-mini by EfficientNet-Lite1: of the 27 pairs above .9 a third are one picture,
# cropped, mirrored or recoloured beyond what thumbnails know again, and the others second shots of one thing; about .88
# they are mostly other photos of one building from one side.
LOOKALIKE: Final = (0.95, 0.9, 0.85)


@dataclass(frozen=True)
class ShuffleCheck:
    """What a stack makes of labels that were shuffled among the queries.

    Attributes:
        gap: its cross-validated GAP, 0..1.
        chance: the mean GAP of answers that know nothing but how frequent each landmark is, over `DRAWS` shuffles.
        spread: the standard deviation over these.
    """

    gap: float
    chance: float
    spread: float

    @property
    def is_chance(self) -> bool:
        """Whether nothing of the queries' own labels reached their answers."""
        return self.gap <= self.chance + TOLERANCE * self.spread


@dataclass(frozen=True)
class Leaks:
    """Pictures that stand in several folds; there must be none.

    Attributes:
        groups: the duplicate groups that span folds, ascending.
        queries: photos of which another copy stands in another fold.
    """

    groups: tuple[int, ...]
    queries: int


@dataclass(frozen=True)
class Lookalikes:
    """Photos that look almost like one their models learned from, though no duplicate, and the GAP without them.

    Attributes:
        cosine: how near the nearest photo lies, at least.
        photos: how many there are.
        gap: of the other queries, 0..1; None where none of these shows a landmark.
        low: of the interval of the GAP over all queries.
        high: likewise.
    """

    cosine: float
    photos: int
    gap: float | None
    low: float
    high: float

    @property
    def are_slight(self) -> bool:
        """Whether the GAP without them stays in its interval."""
        return self.gap is not None and self.low <= self.gap <= self.high


def shuffled_gap(
    rows: pd.DataFrame, queries: pd.DataFrame, fit: Fit, rng: np.random.Generator, config: ValidationConfig
) -> ShuffleCheck:
    """Cross-validate a stack on labels that were shuffled among all queries, 'shows nothing' being a label too.

    Shuffling leaves how frequent each landmark is. So chance is not a draw of lots: the best that can be done without
    looking is to answer with the most frequent candidate, the more frequent the surer.

    Args:
        rows: [N] of `build_rows`.
        queries: id, fold, landmark_id.
        fit: makes a model of rows and which of them are right.
        rng: where the shuffles come from.
        config: prevalence.

    Raises:
        DataError: as `score_fit`.
    """
    shuffled = shuffle_labels(queries, rng)
    learned = score_queries(score_fit(rows, shuffled, fit, config))
    counts = queries["landmark_id"].value_counts()
    frequency: NDArray[np.float64] = np.nan_to_num(rows["landmark_id"].map(counts).to_numpy(dtype=np.float64))
    guesses = pick_answers(rows, frequency, queries, decided_by="frequency")
    drawn = [score_queries(lay_answers(guesses, shuffle_labels(queries, rng), config)) for _ in range(DRAWS)]
    return ShuffleCheck(learned, float(np.mean(drawn)), float(np.std(drawn, ddof=1)))


def shuffle_labels(queries: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Queries with the column landmark_id permuted."""
    return queries.assign(landmark_id=rng.permutation(queries["landmark_id"].to_numpy(dtype=object)))


def leaks(catalog: pd.DataFrame, folds: pd.DataFrame) -> Leaks:
    """Duplicate groups that stand in more than one fold.

    Args:
        catalog: `engine.core.tables.CATALOG`.
        folds: `engine.core.tables.FOLDS`.
    """
    placed = folds.merge(catalog[["id", "duplicate_group"]], on="id")
    spans = placed.groupby("duplicate_group")["fold"].transform("nunique") > 1
    return Leaks(tuple(sorted(placed.loc[spans, "duplicate_group"].unique().tolist())), int(spans.sum()))


def find_lookalikes(
    nearest: pd.DataFrame, answers: pd.DataFrame, queries: pd.DataFrame, config: ValidationConfig, *, seed: int
) -> list[Lookalikes]:
    """What the GAP owes to photos that look almost like one on the other side of a fold, at each cosine of `LOOKALIKE`.

    Args:
        nearest: query, and the cosine of the nearest photo that its models learned from.
        answers: `engine.core.tables.ANSWERS`, out of fold.
        queries: id, landmark_id, and of `weigh_queries`.
        config: shares; resamples and level of the interval.
        seed: of the resamples.
    """
    laid = lay_answers(answers, queries, config)
    interval = draw_interval(laid, config, seed)
    cosines = queries["id"].map(nearest.set_index("query")["cosine"]).to_numpy(dtype=np.float64)
    found = []
    for least in LOOKALIKE:
        alike = cosines >= least
        found.append(Lookalikes(least, int(alike.sum()), score_part(laid, ~alike), interval.low, interval.high))
    return found


def likest_pairs(nearest: pd.DataFrame) -> pd.DataFrame:
    """The rows of `nearest` (query, neighbour, cosine), the likest first, two that are each other's nearest once."""
    ordered = nearest.sort_values("cosine", ascending=False, kind="stable", ignore_index=True)
    pairs = pd.Series([frozenset(pair) for pair in zip(ordered["query"], ordered["neighbour"], strict=True)])
    return ordered[~pairs.duplicated()]
