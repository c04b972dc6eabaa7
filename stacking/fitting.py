"""Fitting a stacker by each method, and choosing the best of them by what they say out of sample.

Every method is fitted several times, each time without a part of the queries, and their probabilities are averaged: the
part that a model did not see tells how many trees are worth having, how good the method is, and what it says out of
sample, which a second stage learns from.

| method    | what it is                                                                                        |
|-----------|---------------------------------------------------------------------------------------------------|
| linear    | a linear model of the query softmax with an outcome "none", `stacking.objectives.fit_linear`      |
| softmax   | trees that start from the linear margin and lower the query softmax too                           |
| log-loss  | trees from there that lower each row's log-loss                                                   |
| hybrid    | trees from there that lower a mixture of query softmax and smoothed GAP                           |
| two-stage | the mean of all of these picks, and trees with one row per query say how probable the pick is     |

In: rows of `stacking.features.build_rows`, which are right, and the group of duplicates that each row's query is of.
Out: a `Trial` of each method; `choose_trial` takes the best. Nothing here touches the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from threadpoolctl import threadpool_limits

from engine.core.config import StackConfig, StackMethod
from engine.core.errors import DataError
from engine.core.gap import ScoredQueries, bootstrap_difference
from stacking.features import feature_names
from stacking.objectives import Right, Starts, Values, fit_linear, query_probability, query_starts
from stacking.scales import find_bounded, logit, straighten_all
from stacking.stacker import Linear, Model, Stacker, rescale, tabulate_queries
from stacking.trees import (
    OBJECTIVES,
    WATCH_EVERY,
    Curve,
    Matrix,
    Objective,
    Sample,
    add_trees,
    answer_gap,
    as_matrix,
    as_text,
    best_rows,
    bin_rows,
    grow,
    starts_within,
    threads_for,
)

METHODS: Final[tuple[StackMethod, ...]] = get_args(StackMethod)  # the simpler first
Stage = Literal["linear"] | Objective
STAGES: Final[tuple[Stage, ...]] = ("linear", *OBJECTIVES)  # of rows
LINEAR_L2: Final = 10.0  # of 1, 10 and 30 the best on real photos, by .0002 and .0018 of GAP
LINEAR_ROWS: Final = 400_000  # thousands for each weight; more rows would only cost memory
TIE: Final = 0.68  # level of the paired interval that has to lie above 0: a gain below one standard error is a tie
TIE_RESAMPLES: Final = 200  # a standard error to 5 %


@dataclass(frozen=True, eq=False)
class Trial:
    """A method fitted, and what it said of queries that its models did not see.

    Attributes:
        stacker: fitted.
        scores: [N] out of sample, 0..1.
        gap: of the answers that the scores pick, over the queries with a right row.
    """

    stacker: Stacker
    scores: Values
    gap: float


def fit_stacker(
    rows: pd.DataFrame, right: Right, groups: NDArray[Any], config: StackConfig, *, seed: int, threads: int
) -> Trial:
    """Fit the method that the configuration names, or of all the best; arguments and errors as `try_methods`."""
    return choose_trial(try_methods(rows, right, groups, config, seed=seed, threads=threads), rows, right, seed=seed)


def try_methods(
    rows: pd.DataFrame, right: Right, groups: NDArray[Any], config: StackConfig, *, seed: int, threads: int
) -> list[Trial]:
    """Fit every method that the configuration asks for, the simpler first.

    Args:
        rows: [N] of `build_rows`, made from out-of-fold scores.
        right: [N] of `stacking.features.mark_right`.
        groups: [N] the group of duplicates of each row's query; a group is never split between parts.
        config: methods, sizes, numbers.
        seed: of the parts, and of which features each tree sees.
        threads: how many to use; what is fitted does not depend on it.

    Raises:
        DataError: when all rows are right or all are wrong, there are fewer groups than parts, or a feature is not a
            finite number.
    """
    if not 0 < np.count_nonzero(right) < len(right):
        raise DataError(
            f"{np.count_nonzero(right)} of {len(right)} candidates are right: there is nothing to tell apart",
            hint="look at the members' own scores first",
        )
    features = feature_names(rows)
    values = as_matrix(rows, features)
    lesson = Lesson(features, values, right, query_starts(rows), config, threads)
    draws = draw_parts(groups, config, seed)
    wanted = METHODS if config.method == "auto" else (config.method,)
    stages = [stage for stage in STAGES if stage in wanted or "two-stage" in wanted]
    with threadpool_limits(1, user_api="blas"):  # whose sums depend on the threads, and which parts would fight over
        firsts = dict(zip(stages, _fit_stages(lesson, stages, draws, seed), strict=True))
    if "two-stage" not in wanted:
        return list(firsts.values())
    second = _fit_second(lesson, list(firsts.values()), draws, seed)
    return [*firsts.values(), second] if config.method == "auto" else [second]


def choose_trial(trials: Sequence[Trial], rows: pd.DataFrame, right: Right, *, seed: int) -> Trial:
    """The simplest trial that no later one beats, in GAP out of sample, by a standard error of the paired difference.

    Args:
        trials: of methods, in any order; a simpler one stands before another in `METHODS`.
        rows: [N] that they are about.
        right: [N].
        seed: of the resamples.
    """
    best, *others = sorted(trials, key=lambda trial: METHODS.index(trial.stacker.method))
    for trial in others:
        ours, theirs = (_pick(rows, right, each.scores) for each in (trial, best))
        rng = np.random.default_rng(seed)
        if bootstrap_difference(ours, theirs, resamples=TIE_RESAMPLES, level=TIE, rng=rng).low > 0:
            best = trial
    return best


@dataclass(frozen=True, eq=False)
class Lesson:
    """What methods are fitted on.

    Attributes:
        features: names [F].
        table: [N, F].
        right: [N].
        starts: [G] the first row of each query.
        config: sizes and numbers.
        threads: to use.
    """

    features: tuple[str, ...]
    table: Matrix
    right: Right
    starts: Starts
    config: StackConfig
    threads: int

    @cached_property
    def bounded(self) -> NDArray[np.bool_]:
        """Which features lie within 0..1: [F]."""
        return find_bounded(self.table)

    def stacker(self, method: StackMethod, models: Iterable[Model], second: Iterable[str] = ()) -> Stacker:
        """A stacker of these features."""
        return Stacker(method, self.features, tuple(self.bounded.tolist()), tuple(models), tuple(second))


def draw_parts(groups: NDArray[Any], config: StackConfig, seed: int) -> list[NDArray[np.intp]]:
    """For each bag, the part of every row by its group: [N] in 0..parts - 1, whatever the order of rows.

    Raises:
        DataError: when there are fewer groups than parts.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < config.parts:
        raise DataError(
            f"{len(names)} queries without their copies cannot fill {config.parts} parts", hint="lower stack.parts"
        )
    shuffles = (np.random.default_rng([seed, bag]).permutation(len(names)) for bag in range(config.bags))
    return [(shuffle % config.parts)[group] for shuffle in shuffles]


@dataclass(frozen=True, eq=False)
class _Grown:
    """A first stage, fitted without some rows.

    Attributes:
        linear: where its trees start.
        model: the trees; None for none.
        curve: the GAP of the rows left out after every `WATCH_EVERY` trees, from 0 on.
    """

    linear: Linear
    model: lgb.Booster | None
    curve: Curve


def _fit_stages(lesson: Lesson, stages: Sequence[Stage], draws: Sequence[NDArray[np.intp]], seed: int) -> list[Trial]:
    """A trial of each first stage."""
    held = [part == number for part in draws for number in range(lesson.config.parts)]
    grows = any(stage != "linear" for stage in stages)
    data = bin_rows(lesson.table, lesson.right, lesson.config, threads=lesson.threads) if grows else None
    with ThreadPoolExecutor(max(1, lesson.threads // threads_for(len(lesson.right), lesson.threads))) as pool:
        grown = list(pool.map(lambda task: _fit_part(lesson, data, stages, task[1], seed + task[0]), enumerate(held)))
    return [_merge(lesson, stage, held, [each[stage] for each in grown]) for stage in stages]


def _fit_part(
    lesson: Lesson, data: lgb.Dataset | None, stages: Sequence[Stage], held: Right, seed: int
) -> dict[Stage, _Grown]:
    """Every first stage without some rows: the line, and trees from it where there are rows that trees can see."""
    linear = _fit_linear(lesson, ~held, seed)
    found: dict[Stage, _Grown] = {"linear": _Grown(linear, None, np.zeros(1))}
    if data is None:
        return found
    margin = linear.margin(lesson.table, lesson.bounded.tolist())
    sample = Sample(data, lesson.right, lesson.starts, margin)
    for objective in OBJECTIVES:
        if objective in stages:
            grown = grow(objective, sample, held, lesson.config, seed=seed, threads=lesson.threads)
            found[objective] = _Grown(linear, *grown)
    return found


def _fit_linear(lesson: Lesson, learned: Right, seed: int) -> Linear:
    """A linear model of some rows, or of as many of their queries as have `LINEAR_ROWS` rows."""
    share = LINEAR_ROWS / max(1, int(np.count_nonzero(learned)))
    if share < 1:
        sizes = np.diff(lesson.starts, append=len(learned))
        learned = learned & np.repeat(np.random.default_rng(seed).random(len(sizes)) < share, sizes)
    straight = straighten_all(lesson.table[learned], lesson.bounded)
    found = fit_linear(straight, lesson.right[learned], starts_within(lesson.starts, learned), l2=LINEAR_L2)
    weights = found.weights / found.scale
    bias = float(found.bias - np.sum(found.mean * weights))
    return Linear(tuple(weights.tolist()), bias, tuple(found.mean.tolist()))


def _merge(lesson: Lesson, stage: Stage, held: Sequence[Right], grown: Sequence[_Grown]) -> Trial:
    """The trial of a stage: as many trees as are best on the whole, and what they say of the rows left out."""
    trees = WATCH_EVERY * int(np.mean([each.curve for each in grown], axis=0).argmax())
    scores = np.zeros(len(lesson.right))
    models = []
    for rows, each in zip(held, grown, strict=True):
        values = lesson.table[rows]
        margin = each.linear.margin(values, lesson.bounded.tolist())
        text = ""
        if each.model is not None and trees:
            text = as_text(each.model, trees)
            margin = add_trees(text, values, margin, threads=lesson.threads)
        scores[rows] += query_probability(margin, starts_within(lesson.starts, rows)) / lesson.config.bags
        models.append(Model(stage, each.linear, text))
    return Trial(lesson.stacker(stage, models), scores, answer_gap(scores, lesson.right, lesson.starts))


def _fit_second(lesson: Lesson, firsts: Sequence[Trial], draws: Sequence[NDArray[np.intp]], seed: int) -> Trial:
    """The mean of all first stages picks each query's answer, and trees learn how probable the pick is."""
    scores: Values = np.mean([trial.scores for trial in firsts], axis=0)
    asked = tabulate_queries(lesson.table, scores, lesson.starts)
    right, margin, config = lesson.right[asked.best], logit(asked.confidence), lesson.config
    data = bin_rows(asked.table, right, config, threads=lesson.threads)
    sample = Sample(data, right, np.arange(len(right)), margin)
    held = [part[lesson.starts] == number for part in draws for number in range(config.parts)]
    grown = [
        grow("log-loss", sample, rows, config, seed=seed + number, threads=lesson.threads)
        for number, rows in enumerate(held)
    ]
    trees = WATCH_EVERY * int(np.mean([curve for _, curve in grown], axis=0).argmax())
    sure, texts = np.zeros(len(right)), []
    for rows, (model, _) in zip(held, grown, strict=True):
        said = margin[rows]
        if trees:
            texts.append(as_text(model, trees))
            said = add_trees(texts[-1], asked.table[rows], said, threads=lesson.threads)
        sure[rows] += expit(said) / config.bags
    models = [model for trial in firsts for model in trial.stacker.models]
    found = rescale(scores, asked.confidence, sure, lesson.starts)
    return Trial(lesson.stacker("two-stage", models, texts), found, answer_gap(found, lesson.right, lesson.starts))


def _pick(rows: pd.DataFrame, right: Right, scores: Values) -> ScoredQueries:
    """What scores answer, over the queries that have rows."""
    starts = query_starts(rows)
    best = best_rows(scores, starts)
    return ScoredQueries(
        ids=rows["query"].iloc[starts].to_numpy(dtype=np.str_),
        answered=np.ones(len(starts), dtype=np.bool_),
        confidence=scores[best],
        correct=right[best],
        has_landmark=np.logical_or.reduceat(right, starts),
        weights=np.ones(len(starts)),
    )
