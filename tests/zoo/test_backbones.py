"""The architectures of the challenge's slides train from scratch at a small size, beat chance, and resume exactly."""

import numpy as np
import pytest
from safetensors.torch import load_file

from engine.core.tables import CANDIDATES, read_table
from zoo.members import run_member
from zoo.recipe import load_recipe

LIGHT = {
    "resnet18": {},
    "densenet121": {},
    "inception_v3": {"input.size": 75, "train.auxiliary": "Mixed_6e", "train.epochs": 10},
    "vgg11": {"train.lr": 5e-4, "train.epochs": 10},
    "vgg11_bn": {},
    "mobilenetv2_100": {"train.epochs": 20, "train.lr": 1e-2},
}
HEAVY = {"wide_resnet50_2": {}}  # seventy million weights
STEP = {"train.epochs": 6, "train.batch_size": 8, "train.lr": 2e-3, "input.views": ["plain"]}


def _recipe(name):
    return load_recipe("tiny-scratch", STEP | {"backbone.name": name, "name": name} | (LIGHT | HEAVY)[name])


@pytest.fixture(scope="module")
def trained(request, photos, make_context, tmp_path_factory):
    """The first fold of a member, and its run."""
    root = tmp_path_factory.mktemp(request.param)
    run_member(make_context(root, photos), _recipe(request.param), folds=[0])
    return request.param, root


@pytest.mark.slow
@pytest.mark.parametrize("trained", [*LIGHT, *HEAVY], indirect=True)
def test_it_beats_chance_out_of_fold(trained, photos):
    name, root = trained
    oof = read_table(root / f"zoo/{name}/fold0/oof.parquet", CANDIDATES)
    best = oof[oof["rank"] == 1].set_index("query")["landmark_id"]
    shown = np.isin(photos.landmarks, ["a", "b"]) & (photos.folds == 0)
    right = (best.loc[photos.ids[shown]].to_numpy() == photos.landmarks[shown]).mean()
    assert right > 0.6, right  # of 8 photos; guessing one of the two is right for half


@pytest.mark.slow
@pytest.mark.parametrize("trained", [*LIGHT, *HEAVY], indirect=True)
def test_it_resumes_to_the_same_weights(trained, photos, make_context, watch, tmp_path):
    name, root = trained
    with pytest.raises(KeyboardInterrupt):
        run_member(make_context(tmp_path, photos, watch(stop_at=3)), _recipe(name), folds=[0])
    run_member(make_context(tmp_path, photos), _recipe(name), folds=[0])
    one, two = (load_file(run / f"zoo/{name}/fold0/weights.safetensors") for run in (root, tmp_path))
    assert all((one[key] == two[key]).all() for key in one)
