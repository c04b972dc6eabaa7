"""The stack on drawn competitions: its GAP on held-out queries beside what it has to beat and what it could still win.

    python benchmarks/stacks.py [--seeds 5] [--queries 20000] [--threads 1]

For each seed a competition is drawn (see `simulator.py` for the world it is in): queries to learn from, and as many
held-out ones. Every method of the stack, every baseline and LightGBM's lambdarank are fitted on the former as the
engine fits them, by its own defaults, and score the latter. Gains are over the method log-loss on the same seed. Then
follows what the project promises of the stack, and whether it holds.

The processor seconds of the row "stack" are those of all methods together. A seed takes about five minutes of one core.
The name is not that of the package, which a script beside it would hide.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import pandas as pd
from simulator import MEMBERS, Competition, draw_pair

from engine.core.config import StackConfig
from engine.core.gap import align, prevalence_weights, score_answers, score_queries
from stacking.answers import answer_alone, pick_answers
from stacking.baselines import Predict, choose_rules
from stacking.blends import fitted_baselines
from stacking.calibration import measure_reliability
from stacking.evaluate import answer_queries, calibrate, groups_of
from stacking.features import mark_right
from stacking.fitting import Trial, choose_trial, try_methods
from stacking.oracles import enter_oracles
from stacking.prevalence import correct_answers, fit_presence, query_table, tell_presence
from stacking.trees import fit_lambdarank

T = TypeVar("T")

PEER: Final = "log-loss"
FEW: Final = 0.03  # of the test photos showed a landmark in the challenges of 2019 and 2020, as far as is known
WANTED: Final[Mapping[str, float]] = {  # of the mean over seeds, at least
    "stack less gated-mean": 0.04,
    "stack less caruana": 0.02,
    "prevalence correction at 3 % landmarks": 0.008,
}
LARGEST_ECE: Final = 0.01
SAME: Final = 1e-12  # a calibration keeps the order, so its GAP may differ in rounding only


@dataclass(frozen=True)
class Measured:
    """One seed.

    Attributes:
        gaps: held-out GAP of every way to answer.
        seconds: of the processor, for fitting.
        promises: what the project promises to hold, by name.
    """

    gaps: dict[str, float]
    seconds: dict[str, float]
    promises: dict[str, float]


def main() -> None:
    """Draw, fit and score, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="competitions to draw")
    parser.add_argument("--queries", type=int, default=20_000, help="to learn from, and as many to be scored on")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    found = [measure(seed, options.queries, StackConfig(), options.threads) for seed in range(options.seeds)]
    print(f"Seeds: {options.seeds}. Queries: {options.queries:,} to learn from, {options.queries:,} held out.\n")
    print_gains(pd.DataFrame([each.gaps for each in found]), pd.DataFrame([each.seconds for each in found]).mean())
    print_promises(pd.DataFrame([each.promises for each in found]))
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}", file=sys.stderr)


def measure(seed: int, queries: int, config: StackConfig, threads: int) -> Measured:
    """Draw one competition, fit on its out-of-fold queries, and score on its held-out ones."""
    ours, theirs = draw_pair(seed, queries=queries)
    rows, unseen = (each.rows(per_member=config.candidates_per_member) for each in (ours, theirs))
    right, truth = mark_right(rows, ours.queries), theirs.queries
    gaps = {name: score_answers(answer_alone(theirs.candidates, name, truth), truth) for name in MEMBERS}
    seconds: dict[str, float] = {}

    def enter(name: str, predict: Predict) -> pd.DataFrame:
        answers = pick_answers(unseen, predict(unseen), truth, decided_by=name)
        gaps[name] = score_answers(answers, truth)
        print(f"seed {seed}, {name}: {gaps[name]:.4f}", file=sys.stderr, flush=True)
        return answers

    for name, rule in choose_rules(unseen).items():
        enter(name, rule)
    for name, fit in fitted_baselines(rows).items():
        predict, seconds[name] = timed(lambda fit=fit: fit(rows, right))
        enter(name, predict)
    predict, seconds["lambdarank"] = timed(lambda: fit_lambdarank(rows, right, config, seed=seed, threads=threads))
    enter("lambdarank", predict)
    groups = groups_of(rows, ours.queries)
    trials, seconds["stack"] = timed(lambda: try_methods(rows, right, groups, config, seed=seed, threads=threads))
    for trial in trials:
        enter(trial.stacker.method, lambda unseen, trial=trial: trial.stacker.predict(unseen, threads=threads))
    chosen = choose_trial(trials, rows, right, seed=seed)
    print(f"seed {seed}: chose {chosen.stacker.method}, {describe(trials)}", file=sys.stderr)
    scores = chosen.stacker.predict(unseen, threads=threads)
    answers = enter("stack", lambda _: scores)
    gaps |= {oracle.name: score_answers(oracle.answers, truth) for oracle in enter_oracles(unseen, answers, truth)}
    kept = {f"stack less {name}": gaps["stack"] - gaps[name] for name in ("gated-mean", "caruana")}
    teller = fit_presence(query_table(rows, chosen.scores), ours.queries, config, seed=seed, threads=threads)
    presence = tell_presence(teller, query_table(unseen, scores), threads=threads)
    return Measured(gaps, seconds, kept | judge(chosen, rows, ours, scores, unseen, theirs, presence, config))


def judge(
    chosen: Trial,
    rows: pd.DataFrame,
    ours: Competition,
    scores: np.ndarray,
    unseen: pd.DataFrame,
    theirs: Competition,
    presence: pd.Series[float],
    config: StackConfig,
) -> dict[str, float]:
    """What calibration and the correction for prevalence do to the held-out answers, both learned out of fold."""
    learned = pick_answers(rows, chosen.scores, ours.queries, decided_by="stack")
    calibration, _, _ = calibrate(learned, ours.queries, config.calibration)
    answers = answer_queries(scores, calibration, unseen, theirs.queries)
    truth = theirs.queries.set_index("id")["landmark_id"].reindex(answers["id"]).reset_index(drop=True)
    given = answers["landmark_id"].notna().to_numpy()
    hit = (answers["landmark_id"] == truth).to_numpy(dtype=np.bool_)
    plain = pick_answers(unseen, scores, theirs.queries, decided_by="stack")

    trained = float(ours.queries["landmark_id"].notna().mean())
    corrected = correct_answers(answers, presence, trained=trained, wanted=FEW)
    weights = prevalence_weights(theirs.queries["landmark_id"].notna().to_numpy(), FEW)
    rare, adapted = (score_queries(align(each, theirs.queries, weights=weights)) for each in (answers, corrected))
    return {
        "GAP at 3 % landmarks, not corrected": rare,
        "prevalence correction at 3 % landmarks": adapted - rare,
        "ECE, calibrated": measure_reliability(answers["confidence"].to_numpy()[given], hit[given]).ece,
        "ECE, not calibrated": measure_reliability(plain["confidence"].to_numpy()[given], hit[given]).ece,
        "GAP by calibration": score_answers(answers, theirs.queries) - score_answers(plain, theirs.queries),
    }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What some work comes to, and the processor seconds of all its threads."""
    began = time.process_time()
    return work(), time.process_time() - began


def describe(trials: list[Trial]) -> str:
    """The GAPs that methods were chosen by."""
    return ", ".join(f"{trial.stacker.method} {trial.gap:.4f}" for trial in trials)


def print_gains(gaps: pd.DataFrame, seconds: pd.Series[float]) -> None:
    """A Markdown table of GAPs [seeds, ways]: mean and deviation over seeds, and the paired gain over the peer."""
    print("| way | held-out GAP | deviation | gain | deviation | seeds won | CPU s |\n|---|---|---|---|---|---|---|")
    for name, column in gaps.items():
        gain = column - gaps[PEER]
        numbers = f"{column.mean():.4f} | {spread(column)} | {gain.mean():+.4f} | {spread(gain)} | {(gain > 0).sum()}"
        print(f"| {name} | {numbers} | {seconds.get(str(name), 0):.1f} |")


def print_promises(promises: pd.DataFrame) -> None:
    """A Markdown table of [seeds, promises], and whether those that are promised hold on the mean."""
    print("\n| of the stack | mean | lowest | highest | promised | holds |\n|---|---|---|---|---|---|")
    for name, column in promises.items():
        promised, holds = "", ""
        if name in WANTED:
            promised, holds = f">= {WANTED[str(name)]}", yes(column.mean() >= WANTED[str(name)])
        elif name == "ECE, calibrated":
            promised, holds = f"<= {LARGEST_ECE}", yes(column.mean() <= LARGEST_ECE)
        elif name == "GAP by calibration":
            promised, holds = f"within {SAME}", yes(column.abs().max() <= SAME)
        print(f"| {name} | {column.mean():.4g} | {column.min():.4g} | {column.max():.4g} | {promised} | {holds} |")


def yes(holds: bool) -> str:
    """For a table."""
    return "yes" if holds else "NO"


def spread(column: pd.Series[float]) -> str:
    """The standard deviation over seeds; nothing for a single one."""
    return "" if len(column) < 2 else f"{column.std():.4f}"


if __name__ == "__main__":
    main()
