"""Ways to stack, on drawn competitions: their GAP on held-out queries, and what a perfect part of one would add.

    python benchmarks/stacks.py [SEEDS [QUERIES]]

SEEDS is how many competitions to draw (default: 3), QUERIES how many to learn from, and as many to be scored on
(default: 20,000). Each takes about two minutes of one core, half of it for the last way. Every way is fitted once on
the out-of-fold queries of a seed and scored on its held-out ones; gains are over row log-loss on the same seed. See
`simulator.py` for the world they are in. The name is not that of the package, which a script beside it would hide.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit
from simulator import MEMBERS, Competition, draw_pair

from engine.core.gap import score_answers
from stacking.answers import answer_alone, pick_answers
from stacking.baselines import choose_rules, fit_logistic
from stacking.features import feature_names, mark_right
from stacking.objectives import (
    Right,
    Starts,
    Values,
    fit_linear,
    hybrid_gradient,
    query_probability,
    query_starts,
    softmax_gradient,
)
from stacking.oracles import enter_oracles

Predict = Callable[[pd.DataFrame], Values]
Fit = Callable[[pd.DataFrame, Right], Predict]  # of rows [N] and which of them are right
Objective = Callable[[Values, Right, Starts], tuple[Values, Values]]

PEER: Final = "trees, row log-loss"
L2: Final = 1.0  # of the linear start
LARGEST_GROUP: Final = 10_000  # rows; LightGBM ranks no more of them together
TREES: Final = 150
PARAMETERS: Final[Mapping[str, Any]] = {
    "learning_rate": 0.06,  # half the trees at twice the step of the engine's default, to spare time
    "num_leaves": 15,
    "min_data_in_leaf": 30,
    "feature_fraction": 0.5,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
    "seed": 0,
}


def main(seeds: int, queries: int) -> None:
    """Draw, fit and score, and print a table."""
    gaps, seconds = [], []
    for seed in range(seeds):
        of_seed, cost = measure(*draw_pair(seed, queries=queries))
        gaps.append(of_seed)
        seconds.append(cost)
    print(f"Seeds: {seeds}. Queries: {queries:,} to learn from, {queries:,} held out.\n")
    print_gains(pd.DataFrame(gaps), pd.DataFrame(seconds).mean())
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}", file=sys.stderr)


def measure(ours: Competition, theirs: Competition) -> tuple[dict[str, float], dict[str, float]]:
    """One seed: the held-out GAP of every way and of the peer's oracles, and the processor seconds of each fit."""
    truth, rows, unseen = theirs.queries, ours.rows(), theirs.rows()
    right = mark_right(rows, ours.queries)
    gaps = {name: score_answers(answer_alone(theirs.candidates, name, truth), truth) for name in MEMBERS}
    for name, rule in choose_rules(unseen).items():
        gaps[name] = score_answers(pick_answers(unseen, rule(unseen), truth, decided_by=name), truth)
    seconds: dict[str, float] = {}
    for name, fit in FITS.items():
        began = time.process_time()
        predict = fit(rows, right)
        seconds[name] = time.process_time() - began
        answers = pick_answers(unseen, predict(unseen), truth, decided_by=name)
        gaps[name] = score_answers(answers, truth)
        print(f"{name}: {gaps[name]:.4f}", file=sys.stderr, flush=True)
        if name == PEER:
            oracles = enter_oracles(unseen, answers, truth)
            gaps |= {oracle.name: score_answers(oracle.answers, truth) for oracle in oracles}
    return gaps, seconds


def print_gains(gaps: pd.DataFrame, seconds: pd.Series[float]) -> None:
    """A Markdown table of GAPs [seeds, ways]: mean and deviation over seeds, and the paired gain over the peer."""
    print("| way | held-out GAP | deviation | gain | deviation | seeds won | CPU s |\n|---|---|---|---|---|---|---|")
    for name, column in gaps.items():
        gain = column - gaps[PEER]
        numbers = f"{column.mean():.4f} | {spread(column)} | {gain.mean():+.4f} | {spread(gain)} | {(gain > 0).sum()}"
        print(f"| {name} | {numbers} | {seconds.get(str(name), 0):.1f} |")


def spread(column: pd.Series[float]) -> str:
    """The standard deviation over seeds; nothing for a single one."""
    return "" if len(column) < 2 else f"{column.std():.4f}"


def fit_rows(rows: pd.DataFrame, right: Right) -> Predict:
    """Trees that judge each row by itself."""
    model = train({"objective": "binary"}, lgb.Dataset(as_matrix(rows), right))
    return lambda unseen: np.asarray(model.predict(as_matrix(unseen), num_threads=1))


def fit_queries(objective: Objective, *, from_line: bool = False) -> Fit:
    """Trees that judge whole queries, from the base rate or from the linear model's margins."""

    def fit(rows: pd.DataFrame, right: Right) -> Predict:
        values, starts = as_matrix(rows), query_starts(rows)
        line = fit_linear(values, right, starts, l2=L2).margin if from_line else flat_start(right)
        data = lgb.Dataset(values, right, init_score=line(values))
        model = train({"objective": lambda margin, _: objective(margin, right, starts)}, data)

        def predict(unseen: pd.DataFrame) -> Values:
            found = as_matrix(unseen)
            margin = line(found) + model.predict(found, raw_score=True, num_threads=1)
            return query_probability(margin, query_starts(unseen))

        return predict

    return fit


def fit_ranks(*, whole_queries: bool, truncation: int) -> Fit:
    """LightGBM's lambdarank, in groups of one query each, or of as many rows as it takes."""

    def fit(rows: pd.DataFrame, right: Right) -> Predict:
        starts = query_starts(rows) if whole_queries else np.arange(0, len(rows), LARGEST_GROUP)
        data = lgb.Dataset(as_matrix(rows), right, group=np.diff(starts, append=len(rows)))
        model = train({"objective": "lambdarank", "lambdarank_truncation_level": truncation}, data)
        return lambda unseen: np.asarray(model.predict(as_matrix(unseen), num_threads=1))

    return fit


def fit_line(rows: pd.DataFrame, right: Right) -> Predict:
    """The linear model alone."""
    line = fit_linear(as_matrix(rows), right, query_starts(rows), l2=L2)
    return lambda unseen: query_probability(line.margin(as_matrix(unseen)), query_starts(unseen))


FITS: Final[Mapping[str, Fit]] = {
    PEER: fit_rows,
    "logistic": lambda rows, right: fit_logistic(rows, right).predict,
    "linear, query softmax": fit_line,
    "trees, query softmax": fit_queries(softmax_gradient),
    "trees, hybrid": fit_queries(hybrid_gradient),
    "linear, then trees, query softmax": fit_queries(softmax_gradient, from_line=True),
    "linear, then trees, hybrid": fit_queries(hybrid_gradient, from_line=True),
    "trees, lambdarank in queries": fit_ranks(whole_queries=True, truncation=30),
    "trees, lambdarank in 10,000 rows": fit_ranks(whole_queries=False, truncation=30),
    "trees, lambdarank in 10,000 rows, truncated at 1,000": fit_ranks(whole_queries=False, truncation=1000),
}


def train(parameters: Mapping[str, Any], data: lgb.Dataset) -> lgb.Booster:
    """The same trees whatever the objective."""
    return lgb.train({**PARAMETERS, **parameters}, data, TREES)


def flat_start(right: Right) -> Callable[[NDArray[np.float32]], Values]:
    """The base rate's log-odds for every row."""
    margin = float(logit(np.mean(right)))
    return lambda values: np.full(len(values), margin)


def as_matrix(rows: pd.DataFrame) -> NDArray[np.float32]:
    """The features, [N, F]."""
    return rows[list(feature_names(rows))].to_numpy(dtype=np.float32)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(words[0]) if words else 3, int(words[1]) if len(words) > 1 else 20_000)
