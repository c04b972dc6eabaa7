"""The stages wired together: photos to candidates to answers to a file. Wiring only; the work is in the packages.

Each stage reads what the run holds, verified by its hash, and writes what the next one needs. The packages are imported
inside the stages, so that a command loads only what it uses.
"""

from engine.pipeline.answering import describe_stack, stack
from engine.pipeline.demo import demo_inputs, demo_solution
from engine.pipeline.leaderboard import read_leaderboard, study
from engine.pipeline.photos import check_data
from engine.pipeline.request import RunRequest
from engine.pipeline.submitting import check_file, score, submit
from engine.pipeline.training import (
    describe_recipes,
    few_shot,
    measure_views,
    plan_zoo,
    recipe_text,
    show_batch,
    train_zoo,
)

__all__ = [
    "RunRequest",
    "check_data",
    "check_file",
    "demo_inputs",
    "demo_solution",
    "describe_recipes",
    "describe_stack",
    "few_shot",
    "measure_views",
    "plan_zoo",
    "read_leaderboard",
    "recipe_text",
    "score",
    "show_batch",
    "stack",
    "study",
    "submit",
    "train_zoo",
]
