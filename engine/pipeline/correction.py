"""Whether confidences are corrected for another share of known landmarks, by what that would have won out of fold."""

from __future__ import annotations

import pandas as pd

from engine.core.config import EngineConfig
from engine.core.runs import Run
from engine.core.storage import read_json
from engine.core.tables import ANSWERS, QUERY_FEATURES
from engine.pipeline.artifacts import ANSWERS_OOF, CALIBRATION, PRESENCE_OOF, STACK


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

    Left to itself (`stack.correct = "auto"`) the correction has to win out of fold by a standard error.

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
    given = load_calibrated(run, queries), queries, load_presence(run), [wanted]
    [found] = sensitivity(*given, validation, seed=config.seed)
    return wanted if found.difference.low > 0 else None
