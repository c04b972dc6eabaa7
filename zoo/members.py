"""A member from recipe to candidates: train each fold's model, score its held-out fold and the test set, merge.

In a run:

    zoo/<member>/fold<k>/weights.safetensors, metrics.jsonl, state/     the model, and how it came about
    logs/<member>/fold<k>/                                              logs of the training, when asked for
    zoo/<member>/fold<k>/{oof,test}.parquet, {oof,test}.queries.parquet   its scores
    scores/<member>.{oof,test}.parquet, .queries.parquet                  the member's scores, all folds merged

A task is (recipe, fold) and depends on nothing but the recipe, the photos and the folds, so tasks may run anywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import nn

from engine.core.config import flatten
from engine.core.errors import ChangedSettingsError
from engine.core.gap import score_answers
from engine.core.runs import TRAIN_ZOO
from engine.core.storage import sha256_json, write_bytes
from engine.core.tables import CANDIDATES, QUERY_FEATURES, read_table
from zoo.candidates import Predictions, Refine, by_mean_embedding, candidate_table, embed, feature_table, predict
from zoo.checkpoints import clear_checkpoints
from zoo.context import Context
from zoo.delf_photos import Describer, describe_own
from zoo.device import threads_for
from zoo.embedding import embed_photos
from zoo.heads import Compared, Tell
from zoo.listing import BYTES_PER_PARAMETER
from zoo.logs import Logs
from zoo.merging import merge_folds
from zoo.network import Network, build_head, build_network, train_mode, trains_faster_mixed
from zoo.photo_heads import NEIGHBOURS_VERSION, NeighbourHead, PhotoHead
from zoo.photo_set import PARTS, Part, lesson_of
from zoo.photos import Photos
from zoo.processes import Worker, run_in_processes
from zoo.recipe import PHOTO_HEADS, HeadConfig, InputConfig, LocalConfig, Recipe
from zoo.sources import EmbeddingSource, PhotoSource, Rows, Source
from zoo.training import Session, TrainingSet, train
from zoo.verification import VERSION as VERIFICATION
from zoo.verification import Verifier, describe_photos
from zoo.weights import weights_content

WEIGHTS_VERSION = 1  # raised when a change of code changes weights
SCORES_VERSION = 3  # of what trained weights say; raised when a change of code changes that
NOTEWORTHY_BYTES = 4 << 30  # half of what small machines and GPUs have


def run_member(context: Context, recipe: Recipe, folds: Sequence[int] = (), *, resume: bool = True) -> None:
    """Bring a member to its merged scores; whatever is finished and fresh is not done again.

    Args:
        context: where and how.
        recipe: the member.
        folds: only these, and merged scores once all others are there and fresh too; empty for all.
        resume: go on with trainings that were interrupted, or begin those anew.

    Raises:
        ChangedSettingsError: when finished work was made from other settings and `force_new` is not set.
        EngineError: when training fails.
        KeyboardInterrupt: when asked to stop; what is finished is kept.
    """
    member = Member(context, recipe)
    for fold in folds or range(context.photos.fold_count):
        if not resume:
            clear_checkpoints(member.state(fold))
        member.train_fold(fold)
        member.score_fold(fold, PARTS)
    if not folds or all(member.is_finished(fold) for fold in range(context.photos.fold_count)):
        merge_folds(context, recipe)


def run_fold(context: Context, recipe: Recipe, fold: int) -> pd.DataFrame:
    """Train one fold's model and return its candidates for the held-out photos; the test set is left alone."""
    member = Member(context, recipe)
    member.train_fold(fold)
    member.score_fold(fold, ["oof"])
    return read_table(context.run.path(f"zoo/{recipe.name}/fold{fold}/oof.parquet"), CANDIDATES)


def score_in_views(context: Context, recipe: Recipe, views: Sequence[str]) -> Callable[[int], pd.DataFrame]:
    """From a fold to its trained model's best candidate for each held-out photo, in other views, not verified."""
    given = recipe.input.model_copy(update={"views": tuple(views)})
    trained, seen = Member(context, recipe), Member(context, recipe.model_copy(update={"input": given}))

    def score(fold: int) -> pd.DataFrame:
        rows = context.photos.rows_of("oof", fold)
        return seen.tabulate(seen.predict(trained.load(fold), fold, rows, keep=1), fold, rows)

    return score


def weights_of(recipe: Recipe, fold: int) -> str:
    """The name of a fold's weights in the run."""
    return f"zoo/{recipe.name}/fold{fold}/weights.safetensors"


def answers_of(candidates: pd.DataFrame) -> pd.DataFrame:
    """The best candidate of each query as its answer: id, landmark_id, confidence."""
    best = candidates[candidates["rank"] == 1]
    return best.rename(columns={"query": "id", "score": "confidence"})[["id", "landmark_id", "confidence"]]


class Member:
    """A recipe in a context; photos and embeddings are made ready when first needed."""

    def __init__(self, context: Context, recipe: Recipe) -> None:
        self.context, self.recipe = context, recipe
        self.lesson = lru_cache(maxsize=1)(partial(lesson_of, context.photos, recipe))  # of the fold at hand
        self.folder = f"zoo/{recipe.name}"

    @cached_property
    def source(self) -> Source:
        """Photos, or for a frozen backbone their embeddings."""
        if not self.recipe.backbone.frozen:
            return photo_source(self.context, self.recipe, keep=True, share=self.context.workers > 0)
        return EmbeddingSource(self.embeddings, self.context.seed, self.device)

    @cached_property
    def embeddings(self) -> NDArray[np.float16]:
        """Of a frozen backbone, [N, V, D]."""
        return embeddings_of(self.context, self.recipe)

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        device: torch.device = self.context.accelerator.device
        return device

    def inputs(self, fold: int) -> dict[str, Any]:
        """What a fold's weights are made from."""
        made_from = flatten(_as_trained(self.recipe)) | weights_content(self.recipe.backbone)
        for key in ("summary", "candidates", "train.checkpoint_seconds"):
            made_from.pop(key)
        if self.recipe.head.kind == "neighbours":
            made_from["neighbours version"] = NEIGHBOURS_VERSION
        return made_from | {
            "seed": self.context.seed,
            "fold": fold,
            "training photos": self.context.photos.training_digest,
            "version": WEIGHTS_VERSION,
        }

    def train_fold(self, fold: int) -> None:
        """Train the model that never sees one fold."""
        context, name = self.context, weights_of(self.recipe, fold)
        if self.is_trained(fold):
            return
        inputs = self.inputs(fold)
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
        facts = {"seconds": round(time.monotonic() - began, 2), "landmarks": len(self.lesson(fold).landmarks)}
        context.run.record(name, kind="weights", version=WEIGHTS_VERSION, inputs=inputs, facts=facts)
        clear_checkpoints(self.state(fold))

    def state(self, fold: int) -> Path:
        """The folder of an unfinished training."""
        return self.context.run.path(f"{self.folder}/fold{fold}/state")

    def _make_context(self) -> Callable[..., Context]:
        """A context like this one but for (accelerator, progress, stop), as another process needs it."""
        given = self.context
        return partial(
            Context, given.run, given.photos,
            seed=given.seed, max_pixels=given.max_pixels, workers=given.workers, force_new=given.force_new,
            logs=given.logs,
        )  # fmt: skip

    def train(self, fold: int, inputs: Mapping[str, Any]) -> Network:
        """The fold's model, trained from its newest checkpoint if there is one."""
        context = self.context
        torch.manual_seed(context.seed * 1000 + fold)  # of the head's first weights
        folder = context.run.path(f"{self.folder}/fold{fold}")
        label = f"{self.recipe.name} fold {fold + 1}/{context.photos.fold_count}"
        model = self.new_model(fold)
        if self.recipe.local is not None and self.recipe.local.kind == "delf":
            Describer.of(model, self.recipe.local, context.accelerator)  # is refused before it is trained, not after
        logs = Logs(context.logs, context.run.path(f"logs/{self.recipe.name}/fold{fold}"), label)
        session = Session(
            folder, context.accelerator, self.trains_mixed(model), context.progress, context.stop, label,
            context.force_new, logs,
        )  # fmt: skip
        lesson = self.lesson(fold)
        data = TrainingSet(
            self.source, lesson.rows, lesson.targets, lambda trained: self._validation_gap(trained, fold)
        )
        if any(parameter.requires_grad for parameter in model.parameters()):
            if context.processes == 1:  # else the first of them tells
                self._warn_of_memory(model)
            with threads_for(sum(parameter.numel() for parameter in model.parameters()), self.device):
                model = train(
                    model, data, self.recipe.train, session,
                    seed=context.seed, inputs=inputs, set_mode=train_mode(self.recipe),
                )  # fmt: skip
        return self._fill(model, fold)

    def new_model(self, fold: int, *, pretrained: bool = True) -> Network:
        """A fold's model before training, on the device."""
        lesson = self.lesson(fold)
        counts, none_class = torch.from_numpy(lesson.counts), lesson.none_class
        if self.recipe.backbone.frozen:
            width = self.embeddings.shape[-1]
            head = build_head(self.recipe.head, width, counts, none_class=none_class)
            return Network(nn.Identity(), head).to(self.device)
        recipe = self.recipe if pretrained else _without_weights(self.recipe)
        network = build_network(recipe, counts, none_class=none_class)
        return network.to(memory_format=torch.channels_last).to(self.device)

    def trains_mixed(self, model: Network) -> bool:
        """Whether a training step is made in the accelerator's precision."""
        return not self.recipe.backbone.frozen and trains_faster_mixed(model, self.device)

    def _warn_of_memory(self, model: nn.Module) -> None:
        needed = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
        if needed > NOTEWORTHY_BYTES:
            self.context.progress.say(
                f"{self.recipe.name}: weights, gradients and the optimiser take {needed / 2**30:.1f} GiB, activations "
                "come on top"
            )

    def _fill(self, model: Network, fold: int) -> Network:
        """Let a head that answers from the training photos take them in; any other is left as it is."""
        if isinstance(model.head, PhotoHead):
            model.head.fill(*self._examples(model, fold))
        return model

    def _examples(self, model: Network, fold: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The fold's training photos as a model embeds them, [N, D], and their classes, [N]."""
        lesson, accelerator = self.lesson(fold), self.context.accelerator
        embeddings = embed(model, self.source, lesson.rows, accelerator=accelerator, mixed=self.scores_mixed)
        return embeddings, torch.from_numpy(lesson.targets).to(embeddings.device)

    @property
    def scores_mixed(self) -> bool:
        """Whether predictions are made in the accelerator's precision."""
        return not self.recipe.backbone.frozen

    def _validation_gap(self, model: Network, fold: int) -> float:
        photos = self.context.photos
        rows, known = photos.rows_of("oof", fold), set(photos.known_landmarks(fold))
        if not known.intersection(photos.landmarks[rows]):
            return math.nan  # nothing that could be right, as in a very small fold
        best = self.predict(self._fill(model, fold), fold, rows, keep=1, source=self.source.in_one_view())
        truth = pd.DataFrame(
            {
                "id": photos.ids[rows],
                "landmark_id": [name if name in known else None for name in photos.landmarks[rows]],
            }
        )
        return score_answers(answers_of(self.tabulate(best, fold, rows)), truth)

    def predict(
        self, model: Network, fold: int, rows: Rows, *,
        keep: int, refine: Refine | None = None, source: Source | None = None,
    ) -> Predictions:  # fmt: skip
        """The best landmarks of some photos by a fold's model, in the recipe's views or in those of another source."""
        if self.recipe.input.merge == "embeddings":
            refine = by_mean_embedding(model.head, refine)
        return predict(
            model, source or self.source, rows,
            landmarks=len(self.lesson(fold).landmarks), keep=keep,
            accelerator=self.context.accelerator, mixed=self.scores_mixed, refine=refine,
        )  # fmt: skip

    @property
    def verifying_device(self) -> torch.device:
        """Where local features are found and compared: other devices than these two lack float64."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def described_rows(self, fold: int, parts: Sequence[Part]) -> Rows:
        """The photos that a fold's model compares with each other: those it learned from, then its queries."""
        photos, learned = self.context.photos, self.lesson(fold).rows
        asked = [photos.rows_of(part, fold) for part in PARTS if part == "oof" or part in parts]
        return np.concatenate([learned, *asked])

    def verifier_of(self, model: Network, fold: int, parts: Sequence[Part]) -> Verifier:
        """Of the local features that a fold's model has of its own, or shares with all folds."""
        config = self.recipe.local
        if config is None or config.kind == "sift":
            return self.verifier
        store = describe_own(
            self.context, self.recipe, config, fold, model,
            rows=self.described_rows(fold, parts), learned=self.lesson(fold).rows,
            weights=self.context.run.hash_of(weights_of(self.recipe, fold), made_by=TRAIN_ZOO),
        )  # fmt: skip
        return Verifier(store, config, self.context.seed, self.verifying_device)

    @cached_property
    def verifier(self) -> Verifier:
        """Of the recipe's SIFT features, for all folds."""
        context, config, device = self.context, self.recipe.local or LocalConfig(), self.verifying_device
        store = describe_photos(
            context.run, config, context.photos.paths, context.photos.hashes,
            max_pixels=context.max_pixels, device=device, progress=context.progress, stop=context.stop,
        )  # fmt: skip
        return Verifier(store, config, context.seed, device)

    def _predict_verified(
        self, verifier: Verifier, model: Network, photos: NeighbourHead, fold: int, rows: Rows
    ) -> Predictions:
        context, lesson = self.context, self.lesson(fold)
        label = f"verify {self.recipe.name} fold {fold + 1}/{context.photos.fold_count}"
        with context.progress.task(label, len(rows), "photo") as advance:

            def refine(
                queries: Rows, embeddings: torch.Tensor, compared: Compared, logits: torch.Tensor
            ) -> tuple[torch.Tensor, Tell]:
                if context.stop.requested:
                    raise KeyboardInterrupt
                if photos is not model.head:
                    compared = photos.compare(embeddings)
                refined = verifier.rerank_batch(photos, lesson.rows, queries, compared, logits)
                advance(len(queries), "")
                return refined

            return self.predict(model, fold, rows, keep=self.recipe.candidates, refine=refine)

    def _as_neighbours(self, model: Network, fold: int) -> NeighbourHead:
        """The fold's training photos by a model's embeddings: its own head where that keeps them."""
        if isinstance(model.head, NeighbourHead):
            return model.head
        embeddings, targets = self._examples(model, fold)
        lesson, config = self.lesson(fold), HeadConfig(kind="neighbours")
        head = NeighbourHead(embeddings.shape[1], len(lesson.counts), len(embeddings), config, lesson.none_class)
        head.to(embeddings.device)
        head.fill(embeddings, targets)
        return head

    def score_fold(self, fold: int, parts: Sequence[Part]) -> None:
        """Write a fold model's candidates and features for its held-out fold, the test set, or both."""
        missing = [part for part in parts if not self.is_scored(fold, part)]
        if not missing:
            return
        model = self.load(fold)
        if self.recipe.local is None:
            score = partial(self.predict, model, fold, keep=self.recipe.candidates)
        else:
            verifier = self.verifier_of(model, fold, missing)
            score = partial(self._predict_verified, verifier, model, self._as_neighbours(model, fold), fold)
        for part in missing:
            self._score_part(score, fold, part)

    def _score_part(self, score: Callable[[Rows], Predictions], fold: int, part: Part) -> None:
        photos, began = self.context.photos, time.monotonic()
        rows = photos.rows_of(part, fold)
        found = score(rows)
        facts = {"seconds": round(time.monotonic() - began, 2), "queries": len(rows)}
        features = feature_table(found, member=self.recipe.name, queries=photos.ids[rows].tolist())
        tables, schemas = (self.tabulate(found, fold, rows), features), (CANDIDATES, QUERY_FEATURES)
        for name, table, schema in zip(self._scores_of(fold, part), tables, schemas, strict=True):
            self.context.run.save_table(name, table, schema, self._score_inputs(fold, rows), facts)

    def load(self, fold: int) -> Network:
        """A fold's trained model, in evaluation mode.

        Raises:
            ArtifactError: when it is not there or damaged.
        """
        model = self.new_model(fold, pretrained=False)
        model.load_state_dict(load_file(self.context.run.verified(weights_of(self.recipe, fold), made_by=TRAIN_ZOO)))
        return model.eval()

    def tabulate(self, found: Predictions, fold: int, rows: Rows) -> pd.DataFrame:
        """What a fold's model found for some photos, as candidates."""
        queries, landmarks = self.context.photos.ids[rows].tolist(), self.lesson(fold).landmarks
        return candidate_table(found, member=self.recipe.name, queries=queries, landmarks=landmarks)

    def is_finished(self, fold: int) -> bool:
        """Whether a fold's model is trained as the recipe says, and has scored everything."""
        return self.is_trained(fold) and all(self.is_scored(fold, part) for part in PARTS)

    def is_trained(self, fold: int) -> bool:
        """Whether a fold's model is trained as the recipe says."""
        return self.context.run.is_fresh(weights_of(self.recipe, fold), self.inputs(fold))

    def is_scored(self, fold: int, part: Part) -> bool:
        """Whether the trained model's scores are there and its own, or nothing is asked of it."""
        rows = self.context.photos.rows_of(part, fold)
        if len(rows) == 0:
            return True
        inputs = self._score_inputs(fold, rows)
        return all(self.context.run.is_fresh(name, inputs) for name in self._scores_of(fold, part))

    def _score_inputs(self, fold: int, rows: Rows) -> dict[str, Any]:
        photos, local = self.context.photos, self.recipe.local
        verified = flatten(local, "local") | {"seed": self.context.seed, "verification": VERIFICATION} if local else {}
        usual = flatten(_as_trained(self.recipe).input, "input")
        looked = {key: value for key, value in flatten(self.recipe.input, "input").items() if value != usual.get(key)}
        made_from = {
            "weights": self.context.run.hash_of(weights_of(self.recipe, fold), made_by=TRAIN_ZOO),
            "candidates": self.recipe.candidates,
            "photos": sha256_json([[photos.ids[row], photos.hashes[row]] for row in rows]),
            "version": SCORES_VERSION,
        }
        return made_from | verified | looked

    def _scores_of(self, fold: int, part: Part) -> tuple[str, str]:
        """The names of a fold's candidates and query features in the run."""
        name = f"{self.folder}/fold{fold}/{part}"
        return f"{name}.parquet", f"{name}.queries.parquet"


def _train_share(
    worker: Worker, make_context: Callable[..., Context], recipe: Recipe, fold: int, inputs: Mapping[str, Any]
) -> None:
    """What each of several processes does for a fold."""
    context = make_context(worker.accelerator, worker.progress, worker.stop)
    Member(context, recipe).train(fold, inputs)


def _as_trained(recipe: Recipe) -> Recipe:
    """A recipe with the defaults of what comes after its weights: the verifier, and views that they never saw."""
    changes: dict[str, Any] = {"local": None}
    if not recipe.backbone.frozen and recipe.head.kind not in PHOTO_HEADS:
        usual = InputConfig()
        changes["input"] = recipe.input.model_copy(update={"views": usual.views, "merge": usual.merge})
    return recipe.model_copy(update=changes)


def _without_weights(recipe: Recipe) -> Recipe:
    backbone = recipe.backbone.model_copy(update={"weights": "random", "source": None})
    return recipe.model_copy(update={"backbone": backbone})


def embeddings_of(context: Context, recipe: Recipe) -> NDArray[np.float16]:
    """The embeddings of every photo by a frozen recipe, float16 [N, V, D]; made now when they are not fresh."""
    return embed_photos(
        context.run, recipe, photo_source(context, recipe, keep=False), context.photos.hashes,
        accelerator=context.accelerator, progress=context.progress, stop=context.stop,
    )  # fmt: skip


def photo_source(context: Context, recipe: Recipe, *, keep: bool, share: bool = False) -> PhotoSource:
    """The photos as a recipe sees them; kept once decoded or not, and among decoding processes or not."""
    given = recipe.input
    photos = Photos(
        context.photos.paths, size=given.size, fit=given.fit, max_pixels=context.max_pixels, keep=keep, share=share
    )
    return PhotoSource(photos, recipe.augment, given.views, context.seed, context.accelerator.device, context.workers)
