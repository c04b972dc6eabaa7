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
