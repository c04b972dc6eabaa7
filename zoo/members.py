"""A member from recipe to candidates: train each fold's model, score its held-out fold and the test set, merge.

In a run:

    zoo/<member>/fold<k>/weights.safetensors, metrics.jsonl, state/     the model, and how it came about
    zoo/<member>/fold<k>/{oof,test}.parquet, {oof,test}.queries.parquet   its scores
    scores/<member>.{oof,test}.parquet, .queries.parquet                  the member's scores, all folds merged

A task is (recipe, fold) and depends on nothing but the recipe, the photos and the folds, so tasks may run anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import nn

from engine.core.config import flatten
from engine.core.errors import ChangedSettingsError, DataError
from engine.core.gap import score_answers
from engine.core.interrupt import StopRequest
from engine.core.progress import Progress
from engine.core.runs import Run
from engine.core.storage import sha256_json, write_bytes
from engine.core.tables import CANDIDATES, QUERY_FEATURES, read_table
from zoo.candidates import (
    BATCH,
    Predictions,
    Refine,
    candidate_table,
    feature_table,
    mean_candidates,
    mean_features,
    predict,
)
from zoo.checkpoints import clear_checkpoints
from zoo.embedding import embed_photos
from zoo.heads import NeighbourHead, build_head
from zoo.listing import BYTES_PER_PARAMETER
from zoo.network import Network, build_network, train_mode, trains_faster_mixed
from zoo.photos import Photos
from zoo.processes import Worker, run_in_processes
from zoo.recipe import LocalConfig, Recipe
from zoo.sources import EmbeddingSource, PhotoSource, Rows, Source
from zoo.training import Session, TrainingSet, train
from zoo.verification import VERSION as VERIFICATION
from zoo.verification import Verifier, describe_photos
from zoo.weights import weights_content

VERSION = 1  # of what is written here; raised when a change of code changes results
TRAIN_ZOO = "engine train-zoo"
Part = Literal["oof", "test"]
NOTEWORTHY_BYTES = 4 << 30  # half of what small machines and GPUs have
NOT_IN_FOLDS = -1  # the fold of a test photo


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """The usable photos of a run, one element per photo, in catalog order.

    Attributes:
        ids: photo ids, [N].
        paths: their files.
        hashes: SHA-256 of each file.
        landmarks: landmark ids; empty text for photos without one, and for test photos.
        folds: 0 … F-1, or `NOT_IN_FOLDS` for test photos.
    """

    ids: NDArray[np.object_]
    paths: list[Path]
    hashes: list[str]
    landmarks: NDArray[np.object_]
    folds: NDArray[np.int64]

    @classmethod
    def from_tables(cls, photos: pd.DataFrame, folds: pd.DataFrame, data: Path) -> PhotoSet:
        """Lay usable catalog rows and their folds side by side."""
        fold = photos["id"].map(folds.set_index("id")["fold"]).fillna(NOT_IN_FOLDS)
        return cls(
            ids=photos["id"].to_numpy(object),
            paths=[data / path for path in photos["path"]],
            hashes=photos["sha256"].tolist(),
            landmarks=photos["landmark_id"].fillna("").to_numpy(object),
            folds=fold.to_numpy(np.int64),
        )

    @cached_property
    def training_digest(self) -> str:
        """What every training is made from: the training photos, their labels and folds."""
        rows = np.flatnonzero(self.folds != NOT_IN_FOLDS)
        return sha256_json([[self.hashes[row], self.landmarks[row], int(self.folds[row])] for row in rows])

    def rows_of(self, part: Part, fold: int) -> Rows:
        """The photos that a fold's model scores: its held-out fold, or the test set."""
        return np.flatnonzero(self.folds == (fold if part == "oof" else NOT_IN_FOLDS))

    def training_rows(self, fold: int, *, negatives: bool) -> Rows:
        """The photos that a fold's model learns from."""
        inside = (self.folds != fold) & (self.folds != NOT_IN_FOLDS)
        return np.flatnonzero(inside if negatives else inside & (self.landmarks != ""))

    def known_landmarks(self, fold: int, *, at_least: int = 1) -> list[str]:
        """The landmarks with that many photos in a fold's training part, sorted: the classes of its model."""
        names, sizes = np.unique(self.landmarks[self.training_rows(fold, negatives=False)], return_counts=True)
        return [str(name) for name in names[sizes >= at_least]]

    @property
    def fold_count(self) -> int:
        """F."""
        return int(self.folds.max()) + 1


@dataclass(frozen=True, eq=False)
class Context:
    """Where and how members are trained.

    Attributes:
        run: where everything goes.
        photos: what everything is made from.
        accelerator: device and precision.
        progress: told of what is going on.
        stop: looked at between steps.
        seed: of everything random.
        max_pixels: limit of the photo reader.
        workers: decoding processes.
        processes: that train a network together.
        force_new: make finished work of other settings anew instead of refusing.
    """

    run: Run
    photos: PhotoSet
    accelerator: Accelerator
    progress: Progress
    stop: StopRequest
    seed: int
    max_pixels: int
    workers: int
    processes: int = 1
    force_new: bool = False


def run_member(context: Context, recipe: Recipe, folds: Sequence[int] = ()) -> None:
    """Bring a member to its merged scores; whatever is finished and fresh is not done again.

    Args:
        context: where and how.
        recipe: the member.
        folds: only these, and merged scores once none is missing; empty for all.

    Raises:
        ChangedSettingsError: when finished work was made from other settings and `force_new` is not set.
        EngineError: when training fails.
        KeyboardInterrupt: when asked to stop; what is finished is kept.
    """
    member = _Member(context, recipe)
    for fold in folds or range(context.photos.fold_count):
        member.train_fold(fold)
        for part in ("oof", "test"):
            member.score_fold(fold, part)
    if all(context.run.find(member.weights_of(fold)) is not None for fold in range(context.photos.fold_count)):
        merge_folds(context, recipe)


class _Member:
    """A recipe in a context; photos and embeddings are made ready when first needed."""

    def __init__(self, context: Context, recipe: Recipe) -> None:
        self.context, self.recipe = context, recipe
        self.folder = f"zoo/{recipe.name}"

    @cached_property
    def photo_source(self) -> PhotoSource:
        context, given = self.context, self.recipe.input
        photos = Photos(
            context.photos.paths,
            size=given.size,
            fit=given.fit,
            max_pixels=context.max_pixels,
            share=context.workers > 0,
        )
        device = context.accelerator.device
        return PhotoSource(photos, self.recipe.augment, given.views, context.seed, device, context.workers)

    @cached_property
    def source(self) -> Source:
        """Photos, or for a frozen backbone their embeddings."""
        if not self.recipe.backbone.frozen:
            return self.photo_source
        return EmbeddingSource(self.embeddings, self.context.seed, self._device)

    @cached_property
    def embeddings(self) -> NDArray[np.float16]:
        """Of a frozen backbone, [N, V, D]."""
        return embeddings_of(self.context, self.recipe)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.context.accelerator.device
        return device

    def weights_of(self, fold: int) -> str:
        """The name of a fold's weights in the run."""
        return f"{self.folder}/fold{fold}/weights.safetensors"

    def inputs(self, fold: int) -> dict[str, Any]:
        """What a fold's weights are made from."""
        recipe = self.recipe.model_copy(update={"local": None})
        made_from = flatten(recipe) | weights_content(recipe.backbone)
        for key in ("summary", "candidates", "local", "train.checkpoint_seconds"):
            made_from.pop(key)
        return made_from | {
            "seed": self.context.seed,
            "fold": fold,
            "training photos": self.context.photos.training_digest,
            "version": VERSION,
        }

    def train_fold(self, fold: int) -> None:
        """Train the model that never sees one fold."""
        context, name = self.context, self.weights_of(fold)
        inputs = self.inputs(fold)
        if context.run.is_fresh(name, inputs):
            return
        changes = context.run.changes(name, inputs)
        if changes and not context.force_new:
            raise ChangedSettingsError(
                f"{context.run.path(name)}: was made from other settings:\n" + "\n".join(changes),
                hint="use --force-new to train it anew, or another --run to keep both",
            )
        self.source  # noqa: B018 - embeddings are made here, outside the time of the head's training
        began = time.monotonic()
        if context.processes > 1 and not self.recipe.backbone.frozen:
            run_in_processes(
                _train_share, (self._make_context(), self.recipe, fold, inputs),
                count=context.processes, accelerator=context.accelerator, progress=context.progress, stop=context.stop,
            )  # fmt: skip
        model = self.train(fold, inputs)  # after several processes: from where they ended
        state = {key: tensor.cpu().contiguous() for key, tensor in model.state_dict().items()}
        write_bytes(context.run.path(name), save(state))
        facts = {"seconds": round(time.monotonic() - began, 2), "landmarks": len(self.known_landmarks(fold))}
        context.run.record(name, kind="weights", version=VERSION, inputs=inputs, facts=facts)
        clear_checkpoints(context.run.path(f"{self.folder}/fold{fold}/state"))

    def _make_context(self) -> Callable[..., Context]:
        """A context like this one but for (accelerator, progress, stop), as another process needs it."""
        given = self.context
        return partial(
            Context, given.run, given.photos,
            seed=given.seed, max_pixels=given.max_pixels, workers=given.workers, force_new=given.force_new,
        )  # fmt: skip

    def train(self, fold: int, inputs: Mapping[str, Any]) -> nn.Module:
        """The fold's model, trained from its newest checkpoint if there is one."""
        context = self.context
        torch.manual_seed(context.seed * 1000 + fold)  # of the head's first weights
        folder = context.run.path(f"{self.folder}/fold{fold}")
        label = f"{self.recipe.name} fold {fold + 1}/{context.photos.fold_count}"
        model: nn.Module = self._new_model(fold)
        mixed = not self.recipe.backbone.frozen and trains_faster_mixed(model, context.accelerator.device)
        session = Session(folder, context.accelerator, mixed, context.progress, context.stop, label, context.force_new)
        data = self._training_set(fold)
        if any(parameter.requires_grad for parameter in model.parameters()):
            self._warn_of_memory(model)
            model = train(
                model, data, self.recipe.train, session,
                seed=context.seed, inputs=inputs, set_mode=train_mode(self.recipe),
            )  # fmt: skip
        return self._fill(model, fold)

    def _new_model(self, fold: int, *, pretrained: bool = True) -> Network:
        counts = torch.from_numpy(np.bincount(self._training_set(fold).targets))
        none_class = len(counts) - 1 if has_none_class(self.context.photos, self.recipe, fold) else None
        if self.recipe.backbone.frozen:
            width = self.embeddings.shape[-1]
            head = build_head(self.recipe.head, width, counts, none_class=none_class)
            return Network(nn.Identity(), head).to(self._device)
        recipe = self.recipe if pretrained else _without_weights(self.recipe)
        network = build_network(recipe, counts, none_class=none_class)
        return network.to(memory_format=torch.channels_last).to(self._device)

    def _warn_of_memory(self, model: nn.Module) -> None:
        needed = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
        if needed > NOTEWORTHY_BYTES:
            self.context.progress.say(
                f"{self.recipe.name}: weights, gradients and the optimiser take {needed / 2**30:.1f} GiB, activations "
                "come on top"
            )

    def _fill(self, model: nn.Module, fold: int) -> nn.Module:
        """Let a head that answers from the training photos take them in; any other is left as it is."""
        if hasattr(model.head, "fill"):
            fill_index(model, self._training_set(fold), self.context.accelerator, mixed=self._scores_mixed)
        return model

    @property
    def _scores_mixed(self) -> bool:
        return not self.recipe.backbone.frozen

    def known_landmarks(self, fold: int) -> list[str]:
        """The landmarks that the fold's model tells apart."""
        return known_landmarks(self.context.photos, self.recipe, fold)

    def _training_set(self, fold: int) -> TrainingSet:
        rows, targets = labelled_rows(self.context.photos, self.recipe, fold)
        return TrainingSet(self.source, rows, targets, lambda model: self._validation_gap(model, fold))

    def _validation_gap(self, model: nn.Module, fold: int) -> float:
        photos = self.context.photos
        rows, known = photos.rows_of("oof", fold), set(photos.known_landmarks(fold))
        if not known.intersection(photos.landmarks[rows]):
            return math.nan  # nothing that could be right, as in a very small fold
        best = self._predict(self._fill(model, fold), fold, rows, keep=1)
        answers = candidate_table(
            best, member="", queries=photos.ids[rows].tolist(), landmarks=self.known_landmarks(fold)
        ).rename(columns={"query": "id", "score": "confidence"})
        truth = pd.DataFrame(
            {
                "id": photos.ids[rows],
                "landmark_id": [name if name in known else None for name in photos.landmarks[rows]],
            }
        )
        return score_answers(answers, truth)

    def _predict(
        self, model: nn.Module, fold: int, rows: Rows, *, keep: int, refine: Refine | None = None
    ) -> Predictions:
        return predict(
            model, self.source, rows,
            landmarks=len(self.known_landmarks(fold)), keep=keep,
            accelerator=self.context.accelerator, mixed=self._scores_mixed, refine=refine,
        )  # fmt: skip

    @cached_property
    def verifier(self) -> Verifier:
        """Of the recipe's local features, for all folds."""
        context, config = self.context, self.recipe.local or LocalConfig()
        cpu_or_cuda = self._device if self._device.type == "cuda" else torch.device("cpu")  # others lack float64
        store = describe_photos(
            context.run, config, context.photos.paths, context.photos.hashes,
            max_pixels=context.max_pixels, device=cpu_or_cuda, progress=context.progress, stop=context.stop,
        )  # fmt: skip
        return Verifier(store, config, context.seed, cpu_or_cuda)

    def _predict_verified(self, model: nn.Module, fold: int, rows: Rows, *, keep: int) -> Predictions:
        context, verifier = self.context, self.verifier
        indexed, _ = labelled_rows(context.photos, self.recipe, fold)
        head = cast("NeighbourHead", model.head)  # a recipe with 'local' has no other
        label = f"verify {self.recipe.name} fold {fold + 1}/{context.photos.fold_count}"
        with context.progress.task(label, len(rows), "query") as advance:

            def refine(queries: Rows, embeddings: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
                if context.stop.requested:
                    raise KeyboardInterrupt
                refined = verifier.rerank_batch(head, indexed, queries, embeddings, logits)
                advance(len(queries), "")
                return refined

            return self._predict(model, fold, rows, keep=keep, refine=refine)

    def score_fold(self, fold: int, part: Part) -> None:
        """Write a fold model's candidates and features for its held-out fold, or for the test set."""
        context = self.context
        rows = context.photos.rows_of(part, fold)
        weights = self.weights_of(fold)
        name = f"{self.folder}/fold{fold}/{part}"
        inputs = {
            "weights": context.run.hash_of(weights, made_by=TRAIN_ZOO),
            "candidates": self.recipe.candidates,
            "photos": sha256_json([[context.photos.ids[row], context.photos.hashes[row]] for row in rows]),
            "version": VERSION,
        }
        if self.recipe.local is not None:
            inputs |= flatten(self.recipe.local, "local") | {"seed": context.seed, "verification": VERIFICATION}
        names = (f"{name}.parquet", f"{name}.queries.parquet")
        if len(rows) == 0 or all(context.run.is_fresh(each, inputs) for each in names):
            return
        model = self._new_model(fold, pretrained=False)
        model.load_state_dict(load_file(context.run.path(weights)))
        began = time.monotonic()
        predict_rows = self._predict if self.recipe.local is None else self._predict_verified
        found = predict_rows(model.eval(), fold, rows, keep=self.recipe.candidates)
        facts = {"seconds": round(time.monotonic() - began, 2), "queries": len(rows)}
        queries = context.photos.ids[rows].tolist()
        candidates = candidate_table(
            found, member=self.recipe.name, queries=queries, landmarks=self.known_landmarks(fold)
        )
        features = feature_table(found, member=self.recipe.name, queries=queries)
        for each, table, schema in zip(names, (candidates, features), (CANDIDATES, QUERY_FEATURES), strict=True):
            context.run.save_table(each, table, schema, inputs, facts)


def _train_share(
    worker: Worker, make_context: Callable[..., Context], recipe: Recipe, fold: int, inputs: Mapping[str, Any]
) -> None:
    """What each of several processes does for a fold."""
    context = make_context(worker.accelerator, worker.progress, worker.stop)
    _Member(context, recipe).train(fold, inputs)


@torch.inference_mode()
def fill_index(model: nn.Module, data: TrainingSet, accelerator: Accelerator, *, mixed: bool) -> None:
    """Give a head that answers from the training photos their embeddings, each the mean of its views."""
    parts = []
    for views in data.source.view_batches(data.rows, batch_size=BATCH):
        with accelerator.autocast() if mixed else nullcontext():
            embeddings = [model.embed(view) for view in views]  # type: ignore[operator] # a module's own method
        parts.append(torch.stack([embedding.float() for embedding in embeddings]).mean(dim=0))
    model.head.fill(torch.cat(parts), torch.from_numpy(data.targets).to(parts[0].device))  # type: ignore[operator,union-attr]


def labelled_rows(photos: PhotoSet, recipe: Recipe, fold: int) -> tuple[Rows, NDArray[np.int64]]:
    """The photos that a fold's model learns from, [N], and their classes, int [N]; 'none of them' is the last class.

    Photos of dropped landmarks are left out: they are not photos of nothing.
    """
    known = known_landmarks(photos, recipe, fold)
    position = {landmark: index for index, landmark in enumerate(known)}
    if has_none_class(photos, recipe, fold):
        position[""] = len(known)
    rows = photos.training_rows(fold, negatives=True)
    classes = np.array([position.get(landmark, -1) for landmark in photos.landmarks[rows]], dtype=np.int64)
    return rows[classes >= 0], classes[classes >= 0]


def has_none_class(photos: PhotoSet, recipe: Recipe, fold: int) -> bool:
    """Whether a fold's model has a class for photos without a landmark."""
    rows = photos.training_rows(fold, negatives=True)
    return recipe.head.none_class and bool((photos.landmarks[rows] == "").any())


def known_landmarks(photos: PhotoSet, recipe: Recipe, fold: int) -> list[str]:
    """The landmarks that a recipe's model of a fold tells apart, sorted: those it does not drop.

    Raises:
        DataError: when it drops all of them.
    """
    known = photos.known_landmarks(fold, at_least=recipe.train.min_photos)
    if not known:
        raise DataError(
            f"{recipe.name}: no landmark has {recipe.train.min_photos} photos in the training part of fold {fold + 1}",
            hint="lower train.min_photos",
        )
    return known


def _without_weights(recipe: Recipe) -> Recipe:
    backbone = recipe.backbone.model_copy(update={"weights": "random", "source": None})
    return recipe.model_copy(update={"backbone": backbone})


def embeddings_of(context: Context, recipe: Recipe) -> NDArray[np.float16]:
    """The embeddings of every photo by a frozen recipe, float16 [N, V, D]; made now when they are not fresh."""
    given = recipe.input
    photos = Photos(context.photos.paths, size=given.size, fit=given.fit, max_pixels=context.max_pixels, keep=False)
    source = PhotoSource(photos, recipe.augment, given.views, context.seed, context.accelerator.device, context.workers)
    return embed_photos(
        context.run, recipe, source, context.photos.hashes,
        accelerator=context.accelerator, progress=context.progress, stop=context.stop,
    )  # fmt: skip


def merge_folds(context: Context, recipe: Recipe) -> None:
    """Write `scores/<member>.*`: out of fold every fold's rows, for the test set the mean over the fold models."""
    run, folds = context.run, range(context.photos.fold_count)
    knows = pd.Series([name for fold in folds for name in known_landmarks(context.photos, recipe, fold)]).value_counts()
    for part in ("oof", "test"):
        for ending, schema in (("parquet", CANDIDATES), ("queries.parquet", QUERY_FEATURES)):
            parts = [f"zoo/{recipe.name}/fold{fold}/{part}.{ending}" for fold in folds]
            parts = [name for name in parts if run.find(name) is not None]
            name = f"scores/{recipe.name}.{part}.{ending}"
            inputs = {name: run.hash_of(name, made_by=TRAIN_ZOO) for name in parts} | {"version": VERSION}
            if not parts or run.is_fresh(name, inputs):
                continue
            tables = [read_table(run.path(each), schema) for each in parts]
            if part == "oof":
                merged = pd.concat(tables, ignore_index=True)
            elif schema is CANDIDATES:
                merged = mean_candidates(tables, knows=knows, member=recipe.name, keep=recipe.candidates)
            else:
                merged = mean_features(tables)
            run.save_table(name, merged, schema, inputs)
