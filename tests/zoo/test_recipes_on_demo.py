"""The recipes that ship, made small, learn from the demo's photos: they beat chance out of fold, and resume exactly."""

import importlib.util
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest

from engine.core.config import load_config, named_toml_files
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
TINY = {"input.size": 32}
UNCHANGED = {"augment.enabled": False}  # photos, for the slow learners
RANDOM = {"backbone.weights": "random"}
# some fifty steps from nothing: an average over thousands would still be at the first weights
SCRATCH = RANDOM | {"train.epochs": 3, "train.lr": 1e-3, "train.ema_decay": 0.5}
# deep ones, on photos of a quarter, where all of them learn at these rates, and not all at those above
DEEP = SCRATCH | UNCHANGED | TINY | {"train.lr": 2e-3, "train.head_lr_factor": 1.0}
DENSE = SCRATCH | UNCHANGED | TINY | {"train.lr": 5e-4}
# without batch norms what all photos have in common drowns their differences; one before the head takes it away
PLAIN = DEEP | {"head.norm": "batch", "train.epochs": 4, "train.lr": 3e-4}
NORMED = PLAIN | {"train.epochs": 2}  # with them half the steps are enough
TUNED = {"train.epochs": 2}  # ImageNet taught them most of it
SMALL_PHOTOS = {"local.size": 128}  # 400 of them are described
VERIFIED = SMALL_PHOTOS | {"local.keypoints": 100, "local.candidates": 5}
DELF = SMALL_PHOTOS | {"local.scales": [1.0]}
RECIPES = {  # recipe -> what is changed beside SMALL
    "tiny-scratch": {"train.epochs": 6},
    "tiny-frozen": {"train.epochs": 20, "head.norm": "batch"},
    "resnet10-scratch": TINY | {"train.epochs": 3},
    "resnet10-random": {},
    "resnet18-fc": SCRATCH | {"train.epochs": 5},
    "resnet34-fc": DEEP,
    "resnet50-fc": SCRATCH,
    "resnet50-flat-fc": SCRATCH,
    "resnet50-dropped-fc": SCRATCH,
    "resnet50-hadamard": SCRATCH,
    "resnet50-facenet": SCRATCH,
    "resnet50-gem-arcface": SCRATCH,
    "resnet50-delf": SCRATCH | DELF,
    "resnet50-frozen": RANDOM | {"train.lr": 3e-2},  # random features differ little between photos
    "resnet101-fc": DEEP,
    "resnet152-fc": DEEP | {"train.epochs": 2},
    "vgg11": PLAIN | {"train.epochs": 3},
    "vgg11-bn": NORMED,
    "vgg13": PLAIN | {"train.epochs": 3},
    "vgg13-bn": NORMED,
    "vgg16": PLAIN,
    "vgg16-bn": NORMED,
    "vgg19": PLAIN | {"train.lr": 2e-4},
    "vgg19-bn": NORMED,
    "wide-resnet50": SCRATCH | {"train.epochs": 2.5},
    "densenet121": SCRATCH,
    "densenet161": DENSE | {"train.epochs": 2},
    "densenet169": DENSE,
    "densenet201": DENSE,
    "inception-v3": SCRATCH | UNCHANGED | {"input.size": 107},  # at 75 its last map is a single cell
    # random weights have no statistics that folded batch norms would keep
    "mobilenetv2": SCRATCH | UNCHANGED | {"train.epochs": 5, "train.lr": 5e-3, "train.fold_norm": False},
    "mobilenetv2-frozen": {"backbone.weights": "file", "train.lr": 1e-2},  # those that are taught, the hub's being away
    "lite0-finetune": TUNED,
    "lite0-hadamard": TUNED | TINY,
    "lite0-gem-arcface": TUNED | TINY,
    "lite0-facenet": TUNED | TINY,
    "lite0-delf": TUNED | DELF,
    "lite0-frozen": {},
    "lite1-finetune": TUNED | TINY | VERIFIED,
    "lite1-frozen": {},
    "lite1-few-shot": {},
    "lite1-prototypes": {},
    "lite1-neighbours": {},
    "lite1-verified": VERIFIED,
    "lite2-finetune": TUNED | TINY | VERIFIED,
    "lite2-frozen": {},
}
# these settings make them what another one is: recipe -> the other
TWINS = {
    "resnet18-scratch": "resnet18-fc",
    "wide-resnet50-scratch": "wide-resnet50",
    "densenet121-scratch": "densenet121",
    "inception-v3-scratch": "inception-v3",
}
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


@pytest.fixture(scope="module")
def taught(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with what the backbone of mobilenetv2 learned of the photos outside the first fold."""
    run = tmp_path_factory.mktemp("taught") / "run"
    shutil.copytree(begun, run)
    weights = load_file(_train_first_fold(run, "mobilenetv2") / "weights.safetensors")
    part = "embed.backbone."
    learned = {name.removeprefix(part): values for name, values in weights.items() if name.startswith(part)}
    save_file(learned, run / "backbone.safetensors")
    return run / "backbone.safetensors"


@pytest.fixture
def train(begun: Path, folder: Path, recipe: str, request: pytest.FixtureRequest):
    """Train the first fold of a recipe in a run of that name: (name, changes, progress)."""
    own = {"backbone.source": str(request.getfixturevalue("taught"))} if recipe == "mobilenetv2-frozen" else {}
    source = load_recipe(recipe).backbone.source
    if source is not None and importlib.util.find_spec(PACKAGES[source][0]) is None:
        pytest.skip("the extra 'pretrained' is not installed")

    def start(name, changes=None, progress=None):
        root = folder / name
        if not root.exists():
            shutil.copytree(begun, root)
        return _train_first_fold(root, recipe, own | (changes or {}), progress)

    return start


def _train_first_fold(run, recipe, changes=None, progress=None):
    settings = RUN | SMALL | RECIPES[recipe] | (changes or {})
    request = RunRequest(run, config="tiny", settings=settings, members=(recipe,), folds=(0,))
    train_zoo(request, progress or Progress())
    return run / "zoo" / recipe / "fold0"


def test_every_recipe_that_ships_is_trained():
    assert sorted([*RECIPES, *TWINS]) == sorted(named_toml_files("zoo.recipes"))


@pytest.mark.parametrize(("recipe", "other"), TWINS.items())
def test_twins_are_one_network(recipe, other):
    one, two = (load_recipe(name, SMALL | RECIPES[other]) for name in (recipe, other))
    assert (one.backbone, one.head, one.input, one.augment) == (two.backbone, two.head, two.input, two.augment)
    assert one.train == two.train.model_copy(update={"head_lr_factor": one.train.head_lr_factor})


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
    short = {"train.epochs": 0.125, "train.batch_size": 8}  # four steps
    short["input.size"] = 75 if recipe == "inception-v3" else 32
    if "local.size" in RECIPES[recipe]:
        short["local.keypoints"] = 3  # what comes after the weights is not looked at
    whole = load_file(train("whole", short) / "weights.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train("halted", short, watch(stop_at=2, ask=lambda: signal.raise_signal(signal.SIGINT)))
    left = [path.name for path in (folder / f"halted/zoo/{recipe}").rglob("*.safetensors")]
    assert left  # a checkpoint
    assert "weights.safetensors" not in left
    resumed = load_file(train("halted", short) / "weights.safetensors")
    assert whole.keys() == resumed.keys()
    assert all((whole[key] == resumed[key]).all() for key in whole), recipe
