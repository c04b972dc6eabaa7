"""The recipes that ship, made small, learn from the demo's photos: they beat chance out of fold, and resume exactly."""

import importlib.util
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy.stats import binomtest

from engine.core.config import load_config
from engine.core.progress import Progress
from engine.core.runs import Run
from engine.core.tables import CANDIDATES, read_table
from engine.demo import make_demo
from engine.pipeline.photos import load_photos, make_photo_set
from engine.pipeline.request import RunRequest
from engine.pipeline.training import train_zoo
from zoo.recipe import load_recipe
from zoo.weights import PACKAGES

RUN = {"device": "cpu", "precision": "fp32", "folds.count": 3}
SMALL = {"input.size": 64, "input.views": ["plain"], "train.batch_size": 16}
# some fifty steps from nothing: an average over thousands would still be at the first weights
SCRATCH = {"backbone.weights": "random", "train.epochs": 3, "train.lr": 1e-3, "train.ema_decay": 0.5}
TUNED = {"train.epochs": 2}  # ImageNet taught them most of it
UNCHANGED = {"augment.enabled": False}  # photos, for the slow learners
SMALL_PHOTOS = {"local.size": 128}  # 400 of them are described
RECIPES = {  # recipe -> what is changed beside SMALL
    "resnet18-fc": SCRATCH | {"train.epochs": 5},
    "resnet50-fc": SCRATCH,
    "resnet50-flat-fc": SCRATCH,
    "resnet50-dropped-fc": SCRATCH,
    "resnet50-hadamard": SCRATCH,
    "resnet50-facenet": SCRATCH,
    "resnet50-gem-arcface": SCRATCH,
    "resnet50-delf": SCRATCH | SMALL_PHOTOS | {"local.scales": [1.0]},
    # without batch norms it is slow to begin: twice the steps, on photos of a quarter
    "vgg11": SCRATCH | UNCHANGED
    | {"input.size": 32, "train.epochs": 7, "train.lr": 5e-4, "train.head_lr_factor": 1.0},
    "vgg11-bn": SCRATCH | {"train.epochs": 2, "train.lr": 3e-4},
    "wide-resnet50": SCRATCH | {"train.epochs": 2.5},
    "densenet121": SCRATCH,
    "inception-v3": SCRATCH | UNCHANGED | {"input.size": 107},  # at 75 its last map is a single cell
    # random weights have no statistics that folded batch norms would keep
    "mobilenetv2": SCRATCH | UNCHANGED | {"train.epochs": 5, "train.lr": 5e-3, "train.fold_norm": False},
    "lite0-finetune": TUNED,
    "lite0-delf": TUNED | SMALL_PHOTOS | {"local.scales": [1.0]},
    "lite0-frozen": {},
    "lite1-few-shot": {},
    "lite1-prototypes": {},
    "lite1-neighbours": {},
    "lite1-verified": SMALL_PHOTOS | {"local.candidates": 5},
}  # fmt: skip
SEARCHING = {"lite1-few-shot", "lite1-prototypes", "lite1-neighbours", "lite1-verified"}  # without any training
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo's data that has its catalog and folds; six landmarks, 400 photos, chance is two in five."""
    folder = tmp_path_factory.mktemp("demo")
    demo = make_demo(folder / "competition", landmarks=6, photos=400, negatives=20, queries=6)
    make_photo_set(Run(folder / "run", create=True), load_config("tiny", RUN), demo.data, Progress())
    return folder / "run"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Gone after the test: the weights of a recipe are a few hundred megabytes."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def train(begun: Path, folder: Path, recipe: str):
    """Train the first fold of a recipe in a run of that name: (name, changes, progress)."""
    source = load_recipe(recipe).backbone.source
    if source is not None and importlib.util.find_spec(PACKAGES[source][0]) is None:
        pytest.skip("the extra 'pretrained' is not installed")

    def start(name, changes=None, progress=None):
        root = folder / name
        if not root.exists():
            shutil.copytree(begun, root)
        settings = RUN | SMALL | RECIPES[recipe] | (changes or {})
        request = RunRequest(root, config="tiny", settings=settings, members=(recipe,), folds=(0,))
        train_zoo(request, progress or Progress())
        return root / "zoo" / recipe / "fold0"

    return start


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_scores_every_held_out_photo_and_beats_chance(recipe, train, begun):
    photos = load_photos(Run(begun))
    best = read_table(train("run") / "oof.parquet", CANDIDATES).query("rank == 1").set_index("query")["landmark_id"]
    assert set(best.index) == set(photos.ids[photos.folds == 0])
    known = (photos.folds == 0) & np.isin(photos.landmarks, photos.known_landmarks(0))
    right = best[photos.ids[known]].to_numpy() == photos.landmarks[known]
    _, sizes = np.unique(photos.landmarks[known], return_counts=True)
    chance = sizes.max() / sizes.sum()  # by always saying the most frequent one
    luck = binomtest(right.sum(), len(right), chance, alternative="greater").pvalue
    assert luck < 0.05, f"{recipe}: {right.mean():.2f} are right, by chance {chance:.2f}"


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in SEARCHING])
def test_it_resumes_to_the_same_weights(recipe, train, folder, watch):
    short = {"train.epochs": 0.25, "input.size": 75 if recipe == "inception-v3" else 32}  # four steps
    whole = load_file(train("whole", short) / "weights.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train("halted", short, watch(stop_at=2, ask=lambda: signal.raise_signal(signal.SIGINT)))
    left = [path.name for path in (folder / f"halted/zoo/{recipe}").rglob("*.safetensors")]
    assert left  # a checkpoint
    assert "weights.safetensors" not in left
    resumed = load_file(train("halted", short) / "weights.safetensors")
    assert whole.keys() == resumed.keys()
    assert all((whole[key] == resumed[key]).all() for key in whole), recipe
