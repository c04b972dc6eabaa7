"""A training that is stopped anywhere, and resumed, ends in the very weights of one that was not."""

import gc
import json
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import ArtifactError, EngineError
from zoo.checkpoints import load_checkpoint
from zoo.device import make_accelerator
from zoo.heads import Head
from zoo.network import Network, build_network, train_mode
from zoo.photos import Photos
from zoo.recipe import HeadConfig, TrainConfig
from zoo.sources import EmbeddingSource, PhotoSource
from zoo.training import Session, TrainingSet, learning_rate_at, make_optimizer, train

CPU = torch.device("cpu")
N, CLASSES, WIDTH = 40, 4, 6
STEPS = {"frozen": 10, "fine-tuned": 6}  # of the whole training
EPOCHS = 2


@dataclass
class Trainee:
    """A training that can be begun over and over: everything but its folder is made anew each time."""

    kind: str
    ema: float | None
    photos: object
    recipe: object
    seen_modes: list[bool] = field(default_factory=list)

    def config(self, **changes):
        batch_size = {"frozen": 8, "fine-tuned": 12}[self.kind]
        values = {
            "epochs": EPOCHS, "batch_size": batch_size, "lr": 1e-2, "ema_decay": self.ema,
            "sampler": {"kind": "power", "power": 0.5},
        }  # fmt: skip
        return TrainConfig(**(values | changes))

    def _model_and_source(self):
        torch.manual_seed(0)
        if self.kind == "frozen":
            chance = np.random.default_rng(0)
            centres = chance.normal(0, 2, (CLASSES, 1, WIDTH))
            embeddings = (centres[np.arange(N) % CLASSES] + chance.normal(size=(N, 2, WIDTH))).astype(np.float16)
            head = HeadConfig(dropout=0.2, norm="batch")
            return Network(torch.nn.Identity(), Head(WIDTH, CLASSES, head)), EmbeddingSource(embeddings, 0, CPU)
        decoded = Photos(self.photos.paths, size=32, fit="stretch", max_pixels=10_000)
        source = PhotoSource(decoded, self.recipe.augment, ("plain",), 0, CPU)
        return build_network(self.recipe, torch.full((CLASSES,), 10)).to(memory_format=torch.channels_last), source

    def validate(self, model):
        self.seen_modes.append(model.training)
        return 0.5

    def train(self, folder, watch, *, inputs=None, force_new=False, **changes):
        model, source = self._model_and_source()
        rows = np.arange(5, 5 + N) if self.kind == "fine-tuned" else np.arange(N)
        data = TrainingSet(source, rows, np.arange(N) % CLASSES, self.validate)
        accelerator = make_accelerator("cpu", "fp32", 1)
        session = Session(
            folder, accelerator, mixed=False, progress=watch, stop=watch.stop, label="tiny fold 1/3",
            force_new=force_new,
        )  # fmt: skip
        config = self.config(**changes)
        return train(
            model, data, config, session,
            seed=0, inputs=inputs or {"train.lr": config.lr}, set_mode=train_mode(self.recipe),
        )  # fmt: skip


@pytest.fixture(scope="module", params=["frozen", "frozen with average", "fine-tuned", "fine-tuned with average"])
def trainee(request, photos, scratch):
    kind, _, average = request.param.partition(" with ")
    return Trainee(kind, 0.9 if average else None, photos, scratch)


@pytest.fixture(scope="module")
def expected(trainee, tmp_path_factory, watch):
    """The weights of the uninterrupted training."""
    return trainee.train(tmp_path_factory.mktemp("uninterrupted"), watch()).state_dict()


@pytest.fixture
def small(photos, scratch):
    """The quickest trainee."""
    return Trainee("frozen", None, photos, scratch)


def _stop(trainee, folder, watch, step, **options):
    with pytest.raises(KeyboardInterrupt):
        trainee.train(folder, watch(step), **options)


def _assert_same(model, expected):
    state = model.state_dict()
    assert state.keys() == expected.keys()
    different = [name for name, tensor in state.items() if not torch.equal(tensor, expected[name])]
    assert not different


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# ---- stop and resume


def test_a_training_stopped_after_every_single_step_ends_in_the_same_weights(trainee, expected, tmp_path, watch):
    for step in range(1, STEPS[trainee.kind] + 1):
        _stop(trainee, tmp_path, watch, step)
        assert load_checkpoint(tmp_path / "state")[0].step == step
    _assert_same(trainee.train(tmp_path, watch()), expected)


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_training_stopped_once_ends_in_the_same_weights(trainee, expected, tmp_path, watch, step):
    _stop(trainee, tmp_path, watch, step)
    _assert_same(trainee.train(tmp_path, watch()), expected)


def test_a_training_takes_all_its_steps_and_changes_the_weights(trainee, expected, tmp_path, watch):
    _stop(trainee, tmp_path, watch, STEPS[trainee.kind])
    checkpoint = load_checkpoint(tmp_path / "state")[0]
    assert checkpoint.step == STEPS[trainee.kind]
    untrained, _ = trainee._model_and_source()
    assert not torch.equal(untrained.state_dict()["head.linear.weight"], expected["head.linear.weight"])
    averaged = any(name.startswith("ema.") for name in checkpoint.tensors)
    assert averaged == (trainee.ema is not None)


def test_the_average_is_what_is_returned_when_there_is_one(photos, scratch, tmp_path, watch):
    plain = Trainee("frozen", None, photos, scratch).train(tmp_path / "plain", watch()).state_dict()
    averaged = Trainee("frozen", 0.9, photos, scratch).train(tmp_path / "averaged", watch()).state_dict()
    assert not torch.equal(plain["head.linear.weight"], averaged["head.linear.weight"])


def test_checkpoints_are_saved_on_the_way_as_often_as_asked(small, tmp_path, watch):
    small.train(tmp_path, watch(), checkpoint_seconds=1e-9)
    assert load_checkpoint(tmp_path / "state")[0].step == STEPS["frozen"]
    small.train(tmp_path / "seldom", watch())
    assert not (tmp_path / "seldom" / "state").exists()


# ---- damaged and foreign checkpoints


@pytest.mark.faults
@pytest.mark.parametrize("damage", [_flip_a_bit, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(trainee, expected, tmp_path, watch, damage):
    _stop(trainee, tmp_path, watch, 2)
    _stop(trainee, tmp_path, watch, 5)
    newest = max((tmp_path / "state").iterdir())
    damage(newest)
    seen = watch()
    _assert_same(trainee.train(tmp_path, seen), expected)
    assert [str(newest) in line and "damaged" in line for line in seen.said] == [True]


@pytest.mark.faults
def test_damaged_checkpoints_do_not_push_out_the_next_whole_one(small, tmp_path, watch):
    for step in (5, 6):
        _stop(small, tmp_path, watch, step)
    for path in (tmp_path / "state").iterdir():
        _flip_a_bit(path)
    _stop(small, tmp_path, watch, 2)  # begun anew
    assert load_checkpoint(tmp_path / "state")[0].step == 2


@pytest.mark.faults
def test_a_checkpoint_of_other_settings_is_refused_with_the_difference(small, tmp_path, watch):
    _stop(small, tmp_path, watch, 3)
    with pytest.raises(ArtifactError, match=r"train\.lr: 0\.01 -> 0\.02") as caught:
        small.train(tmp_path, watch(), lr=0.02)
    assert str(tmp_path / "state") in caught.value.message
    assert "--force-new" in caught.value.hint
    assert load_checkpoint(tmp_path / "state")[0].step == 3


def test_force_new_begins_anew_from_other_settings_only(small, tmp_path, watch):
    _stop(small, tmp_path / "a", watch, 3)
    _stop(small, tmp_path / "a", watch, 5, force_new=True)  # the same settings: nothing is lost
    anew = small.train(tmp_path / "a", watch(), lr=0.02, force_new=True)
    _assert_same(anew, small.train(tmp_path / "b", watch(), lr=0.02).state_dict())


# ---- the record


def test_each_epoch_is_validated_in_evaluation_mode_and_recorded_once(small, tmp_path, watch):
    _stop(small, tmp_path, watch, 3)
    _stop(small, tmp_path, watch, 7)
    assert not small.train(tmp_path, watch()).training
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"], row["validation_gap"]) for row in rows] == [(1, 5, 0.5), (2, 10, 0.5)]
    assert all(np.isfinite(row["loss"]) and row["seconds"] >= 0 for row in rows)
    assert small.seen_modes == [False] * EPOCHS
    small.train(tmp_path, watch())  # a second training in the same folder does not add to the first one's record
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == EPOCHS


def test_a_part_of_an_epoch_is_an_epoch_too(small, tmp_path, watch):
    small.train(tmp_path, watch(), epochs=1.4)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 5), (2, 7)]


def test_the_loss_falls(small, tmp_path, watch):
    small.train(tmp_path, watch(), epochs=30, sampler={"kind": "shuffled"})
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.faults
def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_checkpoint(small, tmp_path, watch):
    _stop(small, tmp_path, watch, 2)
    kept = {path.name for path in (tmp_path / "state").iterdir()}
    with pytest.raises(EngineError, match=r"tiny fold 1/3: the loss is (nan|inf) at step \d") as caught:
        small.train(tmp_path, watch(), lr=1e38, inputs={"train.lr": 1e-2})
    assert "train.lr" in caught.value.hint
    assert kept <= {path.name for path in (tmp_path / "state").iterdir()}


def test_a_finished_training_is_not_held_in_memory(small, tmp_path, watch):
    model = small.train(tmp_path, watch())
    remembered = weakref.ref(model)
    del model
    gc.collect()
    assert remembered() is None


# ---- schedule, order, optimiser


@settings(deadline=None, max_examples=50)
@given(total=st.integers(1, 500), warmup=st.floats(0, 0.99))
def test_the_learning_rate_rises_in_a_line_then_falls_along_a_cosine(total, warmup):
    rates = np.array([learning_rate_at(step, total, warmup) for step in range(total)])
    rising = max(1, round(total * warmup))
    np.testing.assert_allclose(rates[:rising], np.arange(1, rising + 1)[:total] / rising)
    falling = rates[rising:]
    assert (np.diff(falling) < 0).all()
    assert (rates > 0).all()  # no step is in vain
    assert rates.max() <= 1
    if len(falling):
        assert falling[0] == 1
        middle = learning_rate_at(rising + len(falling) // 2, total, warmup)
        assert middle == pytest.approx(0.5, abs=1 / len(falling) * np.pi / 4 + 1e-9)


def test_the_head_has_its_own_learning_rate_and_biases_do_not_decay(scratch):
    network = build_network(scratch, torch.full((CLASSES,), 10))
    network.embed.backbone.conv_stem.requires_grad_(requires_grad=False)
    config = TrainConfig(lr=1e-3, head_lr_factor=5, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in make_optimizer(network, config).param_groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values()) - {"embed.backbone.conv_stem.weight"}
    assert found["head.linear.weight"] == (5e-3, 0.1)
    assert found["head.linear.bias"] == (5e-3, 0)
    assert found["embed.backbone.conv_head.weight"] == (1e-3, 0.1)
    assert found["embed.backbone.bn1.weight"] == (1e-3, 0)
