"""Whether confidences are corrected for another share of known landmarks, by what that would have won out of fold."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import EngineConfig
from engine.core.progress import Progress
from engine.core.runs import Run
from engine.core.storage import read_json
from engine.core.tables import ANSWERS, QUERY_FEATURES
from engine.pipeline.artifacts import ANSWERS_OOF, CALIBRATION, PRESENCE, PRESENCE_OOF, STACK


def load_presence(run: Run) -> pd.Series[float]:
    """P(each query shows a landmark that its models know), out of fold, by query id."""
    table = run.load_table(PRESENCE_OOF, QUERY_FEATURES, made_by=STACK)
    presence: pd.Series[float] = table.set_index("query")["presence"]
    return presence


def load_calibrated(run: Run, queries: pd.DataFrame) -> pd.DataFrame:
    """The stack's answers out of fold with the probabilities that they are right, each fold's learned on the others."""
    from stacking.evaluate import cross_calibrated

    method = read_json(run.verified(CALIBRATION, made_by=STACK))["calibration"]["method"]
    return cross_calibrated(run.load_table(ANSWERS_OOF, ANSWERS, made_by=STACK), queries, method)


def share_to_correct_to(run: Run, config: EngineConfig, queries: pd.DataFrame) -> float | None:
    """The prevalence asked for, when confidences are to be corrected to it; None when they stay.

    Left to itself (`stack.correct = "auto"`) the correction has to win out of fold by a standard error over the stack's
    own ranking, which calibration across folds, that the correction needs, does not quite keep.

    Args:
        run: with the stack's answers out of fold.
        config: stack.correct, validation.prevalence.
        queries: id, fold, landmark_id, out of fold.
    """
    from stacking.prevalence import can_be_told, sensitivity

    wanted = config.validation.prevalence
    if wanted is None or config.stack.correct == "never" or not can_be_told(queries):
        return None
    if config.stack.correct == "always":
        return wanted
    validation = config.validation.model_copy(update={"confidence_level": 0.68})  # a standard error to either side
    plain = run.load_table(ANSWERS_OOF, ANSWERS, made_by=STACK)
    given = plain, load_calibrated(run, queries), queries, load_presence(run), [wanted]
    [found] = sensitivity(*given, validation, seed=config.seed)
    return wanted if found.difference.low > 0 else None


def correct_to_share(
    run: Run,
    config: EngineConfig,
    answers: pd.DataFrame,
    rows: pd.DataFrame,
    scores: NDArray[np.float64],
    learned: pd.DataFrame,
    progress: Progress,
) -> pd.DataFrame:
    """The test set's answers, corrected to the prevalence asked for, to the one it suggests, or to neither.

    Args:
        run: with what tells presence.
        config: stack.transductive, and of `share_to_correct_to`.
        answers: calibrated.
        rows: [N] that they were picked from.
        scores: [N] of the stack.
        learned: id, fold, landmark_id of the queries that it was fitted on.
        progress: told of a correction.
    """
    from stacking.prevalence import can_be_told, correct_answers, query_table, tell_presence
    from stacking.stacker import load_stacker
    from stacking.transductive import correct_to_test

    suggested = config.stack.transductive and can_be_told(learned)
    share = None if suggested else share_to_correct_to(run, config, learned)
    if not suggested and share is None:
        return answers
    teller = load_stacker(run.verified(PRESENCE, made_by=STACK))
    presence = tell_presence(teller, query_table(rows, scores), threads=config.cores)
    trained = float(learned["landmark_id"].notna().mean())
    if share is None:
        answers, share = correct_to_test(answers, presence, trained=trained)
        progress.say(f"transductive: {share:.1%} of the test photos seem to show a known landmark")
        return answers
    progress.say(f"confidences are corrected to {share:.0%} of photos with a known landmark")
    return correct_answers(answers, presence, trained=trained, wanted=share)
