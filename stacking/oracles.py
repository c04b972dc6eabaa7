"""Where the points go: the GAP that answers would have if one part of them were perfect.

In: rows of `stacking.features.build_rows`, answers to their queries, the truth. Out: an `Entry` for each oracle, ready
for the leaderboard. Nothing here touches the disk.

What an oracle adds over the answers is what a perfect gate, label or ranking could still win. With label and ranking
both perfect, GAP is the share of the queries with a known landmark that list it: the ceiling of these candidates.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stacking.evaluate import Entry
from stacking.features import mark_right


def enter_oracles(rows: pd.DataFrame, answers: pd.DataFrame, queries: pd.DataFrame) -> list[Entry]:
    """The answers, with one part of them perfect at a time.

    - gate: whatever shows no known landmark is ranked behind everything else.
    - label: wherever the right landmark is a candidate it is the answer; confidences stay.
    - ranking: labels stay; whatever is right is ranked before everything else.
    - label and ranking: both.

    Args:
        rows: [N] of `build_rows`.
        answers: `engine.core.tables.ANSWERS` made from them.
        queries: id, landmark_id (null: no landmark that the query's models know).
    """
    truth = queries.set_index("id")["landmark_id"].reindex(answers["id"]).reset_index(drop=True)
    answers = answers.reset_index(drop=True)
    listed = answers["id"].isin(rows.loc[mark_right(rows, queries), "query"])
    labelled = answers.assign(landmark_id=answers["landmark_id"].mask(listed, truth))
    found = {
        "gate": _put_first(answers, truth.notna().to_numpy()),
        "label": labelled,
        "ranking": _put_first(answers, (answers["landmark_id"] == truth).to_numpy()),
        "label and ranking": _put_first(labelled, listed.to_numpy()),
    }
    return [Entry(f"oracle {name}", "oracle", table, 0.0) for name, table in found.items()]


def _put_first(answers: pd.DataFrame, chosen: NDArray[np.bool_]) -> pd.DataFrame:
    """The answers with the chosen ones ranked before the others, both in the order that they had."""
    place = answers["confidence"].rank(method="dense").to_numpy()
    return answers.assign(confidence=place + chosen * len(answers))
