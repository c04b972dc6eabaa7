"""A recipe says everything about a member, and a mistake in it is found before any photo is read."""

import pytest
from pydantic import ValidationError

from engine.core.config import MemberConfig, flatten, named_toml_files
from engine.core.errors import ConfigError
from zoo.recipe import BackboneConfig, HeadConfig, LocalConfig, load_recipe, member_recipe

SHIPPED = sorted(named_toml_files("zoo.recipes"))


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_recipe_is_read_under_the_name_of_its_file(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary


def test_a_recipe_of_ones_own_is_read_by_its_path(tmp_path):
    path = tmp_path / "my recipe é.toml"
    path.write_text('name = "mine"\n[backbone]\nname = "test_resnet"\nweights = "random"\n', encoding="utf-8")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.backbone.name, recipe.train.epochs) == ("mine", "test_resnet", 8)


def test_an_unknown_recipe_is_named_with_its_neighbours():
    with pytest.raises(ConfigError, match=r"unknown recipe 'tiny-frozn' — did you mean 'tiny-frozen'"):
        load_recipe("tiny-frozn")


def test_an_unknown_key_is_named_with_its_neighbours():
    with pytest.raises(ConfigError, match=r"unknown key 'train\.epoch' — did you mean 'epochs'"):
        load_recipe("tiny-frozen", {"train.epoch": 3})


def test_every_bad_value_is_shown_at_once():
    bad = {"train.lr": -1, "input.size": 8, "head.norm": "layer", "augment.scale": [0, 1], "input.views": []}
    with pytest.raises(ConfigError) as caught:
        load_recipe("tiny-frozen", bad)
    for key in ("train.lr", "input.size", "head.norm", "augment.scale", "input.views"):
        assert key in caught.value.message


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a\nb", "x" * 65])
def test_a_name_that_could_be_a_path_is_refused(name):
    with pytest.raises(ConfigError, match="name"):
        load_recipe("tiny-frozen", {"name": name})


@pytest.mark.parametrize(
    "backbone",
    [{"weights": "file"}, {"weights": "package"}, {"weights": "random", "source": "x"}, {"source": "x"}],
)
def test_a_source_goes_with_a_file_or_a_package_only(backbone):
    with pytest.raises(ValidationError, match="source"):
        BackboneConfig(name="test_resnet", **backbone)


@pytest.mark.parametrize("pooling", ["gem", "attention"])
def test_a_pooling_that_learns_does_not_go_with_a_frozen_backbone(pooling):
    with pytest.raises(ConfigError, match=rf"'{pooling}' learns, and goes with backbone\.frozen = false"):
        load_recipe("tiny-frozen", {"backbone.pooling": pooling})


def test_a_stage_needs_a_pooling_of_our_own():
    with pytest.raises(ConfigError, match="'stage' goes with pooling = 'attention', 'flat', 'gem'"):
        load_recipe("tiny-scratch", {"backbone.stage": 3})


def test_own_keypoints_need_an_attention_that_finds_them():
    with pytest.raises(ConfigError, match=r"local\.kind = 'delf' goes with backbone\.pooling = 'attention'"):
        load_recipe("tiny-scratch", {"local.kind": "delf"})
    with pytest.raises(ConfigError, match=r"'attention' learns, and goes with backbone\.frozen = false"):
        load_recipe("tiny-frozen", {"local.kind": "delf", "backbone.pooling": "attention"})
    assert load_recipe("tiny-scratch", {"local.kind": "delf", "backbone.pooling": "attention"}).local.kind == "delf"


@pytest.mark.parametrize("name", ["lite0-delf", "resnet50-delf"])
def test_shipped_attention_verifies_by_itself_at_the_size_it_was_trained_at(name):
    recipe = load_recipe(name)
    assert (recipe.local.kind, recipe.local.size, recipe.head.kind) == ("delf", recipe.input.size, "linear")


def test_sift_is_told_of_as_before_there_was_another_kind():
    assert flatten(LocalConfig(), "local") == {
        "local.size": 256, "local.keypoints": 300, "local.upright": True, "local.ratio": 0.95, "local.threshold": 6,
        "local.hypotheses": 256, "local.minimum": 8, "local.candidates": 20, "local.weight": 1,
    }  # fmt: skip
    assert flatten(LocalConfig(kind="sift", scales=(1.0,))) == flatten(LocalConfig())


def test_all_that_delf_depends_on_is_told():
    told = flatten(LocalConfig(kind="delf", scales=(1.0, 2.0), cosine_weight=4.0))
    assert (told["kind"], told["scales"]) == ("delf", [1.0, 2.0])
    assert told.keys() == LocalConfig.model_fields.keys()


def test_settings_change_single_keys_and_leave_the_rest():
    plain, changed = load_recipe("tiny-scratch"), load_recipe("tiny-scratch", {"train.epochs": 7, "head.cosine": True})
    assert (changed.train.epochs, changed.head.cosine) == (7, True)
    assert changed.backbone == plain.backbone
    assert changed.train.lr == plain.train.lr


def test_a_member_may_bear_another_name_than_its_recipe():
    member = MemberConfig(recipe="tiny-scratch", name="twin", set={"train.epochs": 3})
    recipe = member_recipe(member)
    assert (recipe.name, recipe.train.epochs) == ("twin", 3)
    assert member_recipe(MemberConfig(recipe="tiny-scratch")).name == "tiny-scratch"


def test_a_recipe_cannot_be_changed_behind_the_manifests_back():
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe("tiny-scratch").name = "other"


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "resnet50-fc"\nname = "mine"\n[train]\nlr = 0.1\nsampler = { kind = "pk", photos = 4 }\n')
    base, mine = load_recipe("resnet50-fc"), load_recipe(str(path))
    assert (mine.name, mine.train.lr, mine.train.sampler.kind) == ("mine", 0.1, "pk")
    changed = {"lr": 0.1, "sampler": mine.train.sampler}
    assert mine.model_copy(update={"name": base.name, "train": base.train}) == base
    assert mine.train == base.train.model_copy(update=changed)


def test_a_table_of_another_kind_is_not_mixed_with_the_bases(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "lite0-gem-arcface"\nname = "mine"\n[head]\nkind = "linear"\n')
    assert load_recipe(str(path)).head == HeadConfig(kind="linear")


def test_a_recipe_that_is_its_own_base_is_told(tmp_path):
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(f'base = "{two}"\nname = "one"\n')
    two.write_text(f'base = "{one}"\nname = "two"\n')
    with pytest.raises(ConfigError, match=r"is its own base, by .*one\.toml -> .*two\.toml -> .*one\.toml"):
        load_recipe(str(one))
