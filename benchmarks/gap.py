"""GAP at the challenge's size: `gap()` against the pandas kernel that most competitors use, and a plain loop.

    python benchmarks/gap.py [--rows 117703] [--rounds 15]

Each round runs every contender once, so that a busy machine is busy for all of them. Printed: the median processor time
of one thread, the ratio to the pandas kernel, and the value, which has to agree. The bootstrap interval is timed once.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from engine.core.gap import ScoredQueries, bootstrap_gap, gap, gap_reference

PEER = "pandas, sort_values"
TOLERANCE = 1e-9  # the order of summation differs, nothing else may


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=117_703, help="answers; the challenge's test set has 117,703")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    queries = draw_queries(options.rows, np.random.default_rng(0))
    contenders = contenders_for(queries)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    values: dict[str, float] = {}
    load_before = os.getloadavg()[0]
    for _ in range(options.rounds):
        for name, run in contenders.items():
            start = time.thread_time()
            values[name] = run()
            seconds[name].append(time.thread_time() - start)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    load = f"load {load_before:.1f} before, {os.getloadavg()[0]:.1f} after"
    print(f"{options.rows:,} answers, {options.rounds} interleaved rounds, {load}")
    for name, median in medians.items():
        print(f"{name:32} {median * 1e3:9.2f} ms {medians[PEER] / median:7.2f} x   GAP {values[name]:.10f}")
    untied = [value for name, value in values.items() if "ties" not in name]
    if max(untied) - min(untied) > TOLERANCE:
        raise SystemExit("the contenders disagree")
    time_bootstrap(queries)


def draw_queries(rows: int, rng: np.random.Generator) -> ScoredQueries:
    """Queries without ties, four in ten with a landmark, right the more often the surer."""
    confidence = rng.permutation(rows) / rows
    has_landmark = rng.random(rows) < 0.4
    return ScoredQueries(
        ids=np.array([f"{number:016x}" for number in rng.permutation(rows)]),
        answered=np.ones(rows, dtype=np.bool_),
        confidence=confidence,
        correct=has_landmark & (rng.random(rows) < confidence),
        has_landmark=has_landmark,
        weights=np.ones(rows),
    )


def contenders_for(queries: ScoredQueries) -> dict[str, Callable[[], float]]:
    """What is timed, by name."""
    confidence, correct, ids, positives = queries.confidence, queries.correct, queries.ids, queries.positives
    rounded = confidence.round(3)  # about a hundred answers share each confidence
    places = np.argsort(np.argsort(ids))
    return {
        PEER: lambda: pandas_kernel(confidence, correct, positives),
        "numpy, stable argsort": lambda: stable_kernel(confidence, correct, positives),
        "plain loop (gap_reference)": lambda: gap_reference(confidence, correct, ids, positives=positives),
        "gap": lambda: gap(confidence, correct, ids, positives=positives),
        "gap, weighted": lambda: gap(confidence, correct, ids, positives=positives, weights=queries.weights),
        "gap, ties broken by id": lambda: gap(rounded, correct, ids, positives=positives),
        "gap, ties broken by id's rank": lambda: gap(rounded, correct, places, positives=positives),
    }


def pandas_kernel(confidence: np.ndarray, correct: np.ndarray, positives: float) -> float:
    """The peer's default: a frame, sorted, and cumulative sums; ties fall as the sort leaves them."""
    ranked = pd.DataFrame({"confidence": confidence, "hit": correct}).sort_values("confidence", ascending=False)
    precision = ranked["hit"].cumsum() / np.arange(1, len(ranked) + 1)
    return float((precision * ranked["hit"]).sum() / positives)


def stable_kernel(confidence: np.ndarray, correct: np.ndarray, positives: float) -> float:
    """The peer without pandas: ties fall as the rows stand."""
    hits = correct[np.argsort(-confidence, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / positives)


def time_bootstrap(queries: ScoredQueries, resamples: int = 100) -> None:
    """Print what one resample of an interval costs."""
    start = time.thread_time()
    interval = bootstrap_gap(queries, resamples=resamples, level=0.95, rng=np.random.default_rng(0))
    each = (time.thread_time() - start) / resamples
    print(f"{'bootstrap_gap, one resample':32} {each * 1e3:9.2f} ms   95 % {interval.low:.4f} to {interval.high:.4f}")


if __name__ == "__main__":
    main()
