"""A checkpoint is whole or it is passed over; whatever happens, the one before it is still there."""

import resource

import pytest
import torch

from engine.core.errors import ResourceError
from zoo.checkpoints import KEPT, Checkpoint, clear_checkpoints, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.faults


def _checkpoint(step, width=10):
    tensors = {
        "model.weight": torch.full((width,), float(step)),
        "model.seen": torch.tensor(step),  # a batch norm counts in int64
        "optimizer.0.step": torch.tensor(float(step)),
        "model.t": torch.arange(6.0).view(2, 3).T,  # not contiguous
    }
    return Checkpoint(step, {"train.lr": 0.1, "views": ["plain"]}, tensors, {"history": [{"epoch": 1}]})


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def _empty(path):
    path.write_bytes(b"")


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    saved = _checkpoint(7)
    path = save_checkpoint(tmp_path / "state", saved)
    loaded, damaged = load_checkpoint(tmp_path / "state")
    assert (loaded.step, loaded.inputs, loaded.facts, damaged) == (7, saved.inputs, saved.facts, [])
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == tensor.dtype
    assert path.name.startswith("00000007-")


def test_where_nothing_was_saved_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "state") == (None, [])
    clear_checkpoints(tmp_path / "state")


def test_the_newest_two_are_kept_and_the_newest_is_loaded(tmp_path):
    paths = [save_checkpoint(tmp_path, _checkpoint(step)) for step in (2, 9, 10, 100)]
    assert sorted(tmp_path.iterdir()) == paths[-KEPT:]
    assert load_checkpoint(tmp_path)[0].step == 100


@pytest.mark.parametrize("damage", [_flip_a_bit, _cut, _empty])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    save_checkpoint(tmp_path, _checkpoint(1))
    newest = save_checkpoint(tmp_path, _checkpoint(2))
    damage(newest)
    loaded, damaged = load_checkpoint(tmp_path)
    assert (loaded.step, damaged) == (1, [newest])
    assert torch.equal(loaded.tensors["model.weight"], _checkpoint(1).tensors["model.weight"])


def test_when_all_are_damaged_there_is_none(tmp_path):
    paths = [save_checkpoint(tmp_path, _checkpoint(step)) for step in (1, 2)]
    for path in paths:
        _flip_a_bit(path)
    assert load_checkpoint(tmp_path) == (None, paths[::-1])


def test_foreign_and_half_written_files_are_never_opened(tmp_path):
    save_checkpoint(tmp_path, _checkpoint(1))
    for name in ("00000002.safetensors", ".00000002-ab.safetensors.1.unfinished", "last.pth"):
        (tmp_path / name).write_bytes(b"half")
    loaded, damaged = load_checkpoint(tmp_path)
    assert (loaded.step, damaged) == (1, [])


def test_a_full_disk_leaves_the_checkpoint_before_and_no_half_file(tmp_path):
    before = save_checkpoint(tmp_path, _checkpoint(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ResourceError, match=r"00000002-.*disk full"):
            save_checkpoint(tmp_path, _checkpoint(2, width=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [before]
    assert load_checkpoint(tmp_path)[0].step == 1


def test_clearing_removes_checkpoints_and_an_empty_folder_only(tmp_path):
    save_checkpoint(tmp_path / "state", _checkpoint(1))
    clear_checkpoints(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    save_checkpoint(tmp_path / "state", _checkpoint(1))
    (tmp_path / "state" / "notes.txt").write_text("mine", encoding="utf-8")
    clear_checkpoints(tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["notes.txt"]
