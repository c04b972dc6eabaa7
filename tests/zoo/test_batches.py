"""The picture of a batch is the one that training's own steps are given, mixed or not."""

import pytest
import torch

from zoo.batches import MIXED_TILE, TILE, view_training
from zoo.members import Member
from zoo.pictures import batch_picture
from zoo.recipe import load_recipe

SEED, COUNT = 3, 12  # photos: all of the first step, and half of the second
MIXUP, CUTMIX = {"train.mixup": 1.0}, {"train.cutmix": 1.0}
SMALL_FIRST = {"train.first_size": 16, "train.last_epochs": 1}


class Watched(Member):
    """A member that keeps what its network is given in each step of training: batch, classes, smoothing, mix."""

    def new_model(self, fold, *, pretrained=True):
        self.steps = []
        model = super().new_model(fold, pretrained=pretrained)
        model.register_forward_pre_hook(lambda _model, given: self.steps.append(given) if len(given) == 4 else None)
        return model


def _recipe(**settings):
    return load_recipe("tiny-scratch", {"train.batch_size": 8, "train.epochs": 2} | settings)


def _view(photos, recipe, **others):
    return view_training(photos, recipe, **({"seed": SEED, "epoch": 0, "count": COUNT, "max_pixels": 10_000} | others))


@pytest.mark.parametrize(
    "settings",
    [{}, SMALL_FIRST, MIXUP, CUTMIX, MIXUP | CUTMIX | SMALL_FIRST],
    ids=["plain", "smaller at first", "mixup", "cutmix", "all of it"],
)
def test_it_shows_what_the_steps_of_an_epoch_are_given(settings, photos, make_context, tmp_path):
    recipe = _recipe(**settings)
    member = Watched(make_context(tmp_path, photos, seed=SEED), recipe)
    member.train_fold(0)
    names = [*member.lesson(0).landmarks, "none"]
    for epoch in (0, 1):
        images, labels = [], []
        first = epoch * len(member.steps) // 2
        for batch, targets, _, mix in member.steps[first : first + 2]:
            own = [names[target] for target in targets]
            images.append(batch)
            labels += own if mix is None else [_label(own, mix, row) for row in range(len(own))]
        tile = TILE if mix is None else MIXED_TILE
        expected = batch_picture(torch.cat(images)[:COUNT], labels[:COUNT], tile=tile)
        assert _view(photos, recipe, epoch=epoch).batch.tobytes() == expected.tobytes()


def _label(own, mix, row):
    return f"{own[row]} {round(100 * mix.share)} % + {own[int(mix.partner[row])]}"


def test_a_mixed_batch_is_drawn_the_same_again(photos):
    once, again = (_view(photos, _recipe(**MIXUP)).batch for _ in range(2))
    assert once.tobytes() == again.tobytes()
    assert _view(photos, _recipe(**MIXUP), seed=SEED + 1).batch.tobytes() != once.tobytes()


def test_of_a_frozen_backbone_embeddings_are_mixed_and_photos_drawn_as_they_are(photos):
    settings = {"backbone.frozen": True}
    plain, mixed = (_view(photos, _recipe(**settings, **more)).batch for more in ({}, MIXUP))
    assert mixed.tobytes() == plain.tobytes()
