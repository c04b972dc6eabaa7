"""Where the stack's files stand in a run, and what makes them."""

from __future__ import annotations

STACK = "engine stack --oof"
STACK_VERSION = 13  # of what the stack writes; raised when a change of code changes results
STUDY_VERSION = 2  # likewise of its studies
ANSWERS_OOF = "stack/answers.oof.parquet"  # the stack's to the training photos, by stacks that never saw their fold
METHODS_OOF = "stack/methods.oof.parquet"  # likewise of every method it chose among
PRESENCE_OOF = "stack/presence.oof.parquet"  # P(the photo shows a landmark that its models know), likewise
PRESENCE = "stack/presence.json"  # the stacker of whole queries that tells it, for the test set; none where nothing can
CALIBRATION = "stack/calibration.json"  # confidence to probability, and how reliable both are
STACKER = "stack/stacker.json"  # of all training photos
ANSWERS_TEST = "stack/answers.test.parquet"
LEADERBOARD = "stack/leaderboard.json"
STUDIES = {name: f"stack/{name}.json" for name in ("worth", "importance", "checks")}  # made when they are asked for
