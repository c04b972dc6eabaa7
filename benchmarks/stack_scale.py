"""The stack at the challenge's size: time and memory of each step, on candidates that are drawn.

    python benchmarks/stack_scale.py [--queries 117703] [--trees 20] [--threads 2]

117,703 queries, five members that list 20 of 14,951 landmarks each, and all of them become rows: four times as many
candidates as the engine takes by default. Fitted are the linear stack, and then all methods, of which the best is
chosen, also without one fold while all rows are held; then the choice answers as many other queries. Time goes with
the trees, and memory does not, so there are fewer trees than the engine's default, and the time for those is
extrapolated. Exit code 1 when memory goes past 6 GiB.

No array of queries x landmarks is ever made: each query has 40 landmarks that all members may see in it, and 20 more
for each member. Otherwise the world is that of `simulator.py`.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
import pandas as pd
import psutil
from scipy.special import softmax
from simulator import (
    LARGEST_CLASS,
    MEMBERS,
    SHARED_NOISE,
    Competition,
    Member,
    assemble,
    draw_features,
    draw_photos,
)

from engine.core.config import StackConfig
from engine.core.gap import score_answers
from stacking.answers import pick_answers
from stacking.evaluate import groups_of
from stacking.features import feature_names, mark_right
from stacking.fitting import fit_stacker
from stacking.stacker import Stacker

T = TypeVar("T")

LANDMARKS: Final = 14_951
LISTED: Final = 20
FOLDS: Final = 5
SHARED: Final = 40  # landmarks that all members may see in a query
OWN: Final = 20  # and that one alone may see
ZOO: Final = {**MEMBERS, "tiny": Member(skill=1.0, side=64, frequency=0.3, noise=0.9)}
GIBI: Final = 2**30
MOST: Final = 6.0  # GiB; what the project promises


def main() -> None:
    """Draw, fit, answer, and print what each step took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=117_703, help="as many to learn from as to answer")
    parser.add_argument("--trees", type=int, default=20, help="of each method at most")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print("| step | wall s | CPU s | GiB then | highest GiB yet |\n|---|---|---|---|---|", flush=True)
    stacker = learn(options.queries, options.trees, options.threads)
    answer(stacker, options.queries, options.threads)
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}", file=sys.stderr)
    if peak_memory() > MOST:
        raise SystemExit(f"{peak_memory():.2f} GiB are more than {MOST:.0f}")


def learn(queries: int, trees: int, threads: int) -> Stacker:
    """A stacker fitted on drawn queries, and what that took."""
    drawn, *_ = measure("draw", lambda: draw_listed(0, queries))
    rows, *_ = measure("rows", lambda: drawn.rows(tuple(ZOO), per_member=LISTED))
    right, *_ = measure("which are right", lambda: mark_right(rows, drawn.queries))
    groups = groups_of(rows, drawn.queries)
    print(f"| {len(rows):,} rows, {len(feature_names(rows))} features, {right.mean():.2%} right | | | | |", flush=True)
    config = StackConfig(candidates_per_member=LISTED, trees=trees, method="linear")
    _, *line = measure("fit, linear", lambda: fit_stacker(rows, right, groups, config, seed=0, threads=threads))
    config = config.model_copy(update={"method": "auto"})
    best, *full = measure(
        f"fit, all methods, {trees} trees", lambda: fit_stacker(rows, right, groups, config, seed=0, threads=threads)
    )
    others = rows["query"].map(drawn.queries.set_index("id")["fold"]).to_numpy() != 0
    measure(
        "the same without one of five folds, as nested validation has it",
        lambda: fit_stacker(rows[others], right[others], groups[others], config, seed=0, threads=threads),
    )
    by_default = StackConfig().trees
    each = [(long - short) / trees for long, short in zip(full, line, strict=True)]
    whole = [short + one * by_default for short, one in zip(line, each, strict=True)]
    print(f"| fit, all methods, {by_default} trees, extrapolated | {whole[0]:.0f} | {whole[1]:.0f} | | |")
    print(f"| one tree of every method and part | {each[0]:.2f} | {each[1]:.2f} | | |")
    print(f"| chosen: {best.stacker.method} | | | | |", flush=True)
    return best.stacker


def answer(stacker: Stacker, queries: int, threads: int) -> None:
    """Answers to other queries, and what they took."""
    drawn, *_ = measure("draw others", lambda: draw_listed(1, queries, folds=0))
    rows, *_ = measure("their rows", lambda: drawn.rows(tuple(ZOO), per_member=LISTED))
    scores, *_ = measure("predict", lambda: stacker.predict(rows, threads=threads))
    answers, *_ = measure("answers", lambda: pick_answers(rows, scores, drawn.queries, decided_by="stack"))
    print(f"| GAP {score_answers(answers, drawn.queries):.4f} | | | | |")


def measure(name: str, work: Callable[[], T]) -> tuple[T, float, float]:
    """What some work comes to, its wall and processor seconds; prints them, and the process's memory."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    now = psutil.Process().memory_info().rss / GIBI
    print(f"| {name} | {wall:.1f} | {cpu:.1f} | {now:.2f} | {peak_memory():.2f} |", flush=True)
    return found, wall, cpu


def peak_memory() -> float:
    """The most that this process ever held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBI


def draw_listed(seed: int, queries: int, *, folds: int = FOLDS) -> Competition:
    """Draw a competition of as many landmarks as the challenge's, of which each query may show a few.

    Args:
        seed: of everything.
        queries: Q.
        folds: that the queries are spread over; 0 for a test set, whose fold is -1.
    """
    rng = np.random.default_rng(seed)
    sizes = np.maximum(LARGEST_CLASS / np.arange(1, LANDMARKS + 1), 2).astype(np.int64)
    ids = pd.Index([f"{number:016x}" for number in rng.choice(1 << 40, queries, replace=False)], dtype="str")
    names = pd.Index([f"{number:05d}" for number in range(LANDMARKS)], dtype="str")
    photos = draw_photos(rng, sizes, queries)

    def draw_landmarks(each: int) -> np.ndarray:
        return rng.choice(LANDMARKS, (queries, each), p=sizes / sizes.sum())

    common = np.column_stack([photos.shown, photos.decoy, draw_landmarks(SHARED - 2)])  # [Q, SHARED]
    noise = SHARED_NOISE * rng.standard_normal(common.shape, dtype=np.float32)
    tables, features = [], []
    for name, member in ZOO.items():
        pool = np.column_stack([common, draw_landmarks(OWN)])  # [Q, SHARED + OWN]
        logits = member.noise * rng.standard_normal(pool.shape, dtype=np.float32)
        logits[:, :SHARED] += noise
        logits += member.frequency * np.log(sizes)[pool]
        sight = member.skill * np.minimum(photos.side / member.side, 1)
        for column, likeness in enumerate((photos.clarity, photos.lure)):
            logits[:, column] += sight * likeness
        scores = softmax(logits, axis=1)
        tables.append(list_best(name, scores, pool, ids, names))
        features.append(draw_features(rng, name, scores, ids, photos))
    return assemble(rng, photos, sizes, ids, names, tables, features, folds=folds)


def list_best(
    member: str, scores: np.ndarray, pool: np.ndarray, ids: pd.Index[str], names: pd.Index[str]
) -> pd.DataFrame:
    """`engine.core.tables.CANDIDATES`: of each query's landmarks [Q, P] the best, each once, at most `LISTED`."""
    order = np.lexsort((-scores, pool), axis=1)
    landmark = np.take_along_axis(pool, order, axis=1)
    score = np.take_along_axis(scores, order, axis=1)
    score[:, 1:][landmark[:, 1:] == landmark[:, :-1]] = -1  # a landmark that was drawn twice
    best = np.argsort(-score, axis=1)[:, :LISTED]
    landmark, score = np.take_along_axis(landmark, best, axis=1), np.take_along_axis(score, best, axis=1)
    query, rank = np.nonzero(score > 0)
    return pd.DataFrame(
        {
            "member": member,
            "query": ids.take(query),
            "landmark_id": names.take(landmark[query, rank]),
            "score": score[query, rank].astype(np.float32),
            "rank": (rank + 1).astype(np.int16),
        }
    )


if __name__ == "__main__":
    main()
