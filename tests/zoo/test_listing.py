"""Parameters are counted without memory, and are those of the challenge's slides."""

import pytest
import timm

from engine.core.config import named_toml_files
from zoo.listing import describe
from zoo.recipe import load_recipe

RESNET50 = sum(parameter.numel() for parameter in timm.create_model("resnet50", num_classes=0).parameters())


@pytest.mark.parametrize(
    ("name", "head", "features"),
    [
        ("resnet50-fc", 2048 * 14_951 + 14_951, 2048),
        ("resnet50-flat-fc", 489_929_319, 32_768),
        ("resnet50-hadamard", 14_952, 2048),
        ("resnet50-gem-arcface", 3 * 2048 * 14_951, 2048),
        ("resnet50-facenet", 0, 2048),
    ],
)
def test_parameters_are_those_of_the_slides(name, head, features):
    facts = describe(load_recipe(name))
    assert facts.head_parameters == head
    assert facts.features == features
    assert facts.backbone_parameters == RESNET50 + (name == "resnet50-gem-arcface")  # GeM's p
    assert facts.training_bytes == 16 * (facts.backbone_parameters + head)


def test_delf_counts_conv4_its_attention_and_a_linear_layer():
    facts = describe(load_recipe("resnet50-delf"))
    last = sum(parameter.numel() for parameter in timm.create_model("resnet50").layer4.parameters())
    attention = (1024 * 512 + 512) + (512 + 1)
    assert facts.features == 1024
    assert facts.backbone_parameters == RESNET50 - last + attention
    assert facts.head_parameters == 1024 * 14_951 + 14_951


def test_an_auxiliary_classifier_learns_beside_the_head():
    facts = describe(load_recipe("inception-v3"))
    inception = sum(parameter.numel() for parameter in timm.create_model("inception_v3", num_classes=0).parameters())
    narrow = 768 * 128 + 2 * 128  # 1 x 1 on the 768 channels of its layer, and a norm
    wide = 5 * 5 * 128 * 768 + 2 * 768
    assert facts.auxiliary_parameters == narrow + wide + 768 * 14_951 + 14_951
    assert facts.head_parameters == 2048 * 14_951 + 14_951
    assert facts.backbone_parameters == inception
    assert facts.training_bytes == 16 * (inception + facts.head_parameters + facts.auxiliary_parameters)


def test_a_recipe_without_an_auxiliary_classifier_has_no_parameters_of_one():
    assert describe(load_recipe("resnet50-fc"), landmarks=10).auxiliary_parameters == 0


def test_a_frozen_backbone_takes_no_memory_to_train():
    facts = describe(load_recipe("resnet50-frozen"), landmarks=10)
    assert facts.training_bytes == 16 * (2048 * 10 + 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", named_toml_files("zoo.recipes"))
def test_every_recipe_that_ships_can_be_built(name):
    facts = describe(load_recipe(name), landmarks=7)
    assert facts.name == name
    assert facts.summary
    assert facts.features > 0
