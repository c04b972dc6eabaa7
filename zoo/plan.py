"""What is left to do for a member: parameters, memory and time, from a few real steps; nothing of it is kept.

In: a recipe, and a run that may hold finished work. Out: a `Plan`. A few steps of the real training run on the real
photos, a batch is scored, some photos are embedded or described; times of the whole follow by counting. What members
share, as embeddings, counts for the first of them.

Left out are the gate, checkpoints, a fold that is half trained, and what several processes gain.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from engine.core.progress import Advance, Progress
from engine.core.runs import TRAIN_ZOO
from zoo.candidates import BATCH
from zoo.context import Context
from zoo.delf import DIM, Whitening
from zoo.delf_photos import Describer, count_missing_own, own_series
from zoo.embedding import embed_rows, embedding_series, frozen_embedder
from zoo.listing import BYTES_PER_PARAMETER, RecipeFacts, describe
from zoo.local import inliers
from zoo.members import Member, photo_source, weights_of
from zoo.network import Network, train_mode
from zoo.photo_heads import PhotoHead
from zoo.photo_set import PARTS
from zoo.recipe import LocalConfig, Recipe, TrainConfig
from zoo.samplers import epoch_order
from zoo.shards import Series, count_missing
from zoo.sources import PhotoSource
from zoo.training import Session, Steps, TrainingSet, count_steps, train
from zoo.verification import SHARD, LocalStore, extract, local_series
from zoo.views import expand_views

STEPS = 4  # of training that are measured, after as many to warm up
SAMPLE = 16  # photos that are read, embedded or described, spread over all: their sizes differ
WEIGHT_BYTES = 4  # of a weight that does not learn


@dataclass(frozen=True)
class Plan:
    """What is left to do for a member.

    Attributes:
        member: its name.
        finished: whether nothing is left.
        parameters: that learn.
        memory_bytes: weights, gradients, the optimiser, and what a batch keeps for its backward pass; decoded photos
            come on top.
        images_per_second: of training, validation apart; None where nothing is trained.
        preparing_seconds: of reading photos into memory, of embeddings and of local features.
        training_seconds: of the steps of all folds.
        scoring_seconds: of validation after each epoch, of held-out folds and of the test set.
        fits: whether memory is enough; where it is not, times are 0.
    """

    member: str
    finished: bool
    parameters: int
    memory_bytes: int
    images_per_second: float | None = None
    preparing_seconds: float = 0.0
    training_seconds: float = 0.0
    scoring_seconds: float = 0.0
    fits: bool = True

    @property
    def seconds(self) -> float:
        """Of everything."""
        return self.preparing_seconds + self.training_seconds + self.scoring_seconds


def plan_members(context: Context, recipes: Sequence[Recipe], folds: Sequence[int] = ()) -> list[Plan]:
    """Measure each member and work out what is left to do.

    Args:
        context: where and how the members would be trained; nothing is written to its run.
        recipes: the members.
        folds: only these; empty for all.

    Raises:
        EngineError: where a training would fail at its beginning, as for weights that are not there.
        KeyboardInterrupt: when asked to stop.
    """
    plans: list[Plan] = []
    counted: set[str] = set()  # folders of series
    with context.progress.task("measure", len(recipes), "member") as advance:
        for recipe in recipes:
            plans.append(_Trial(context, recipe, counted).plan(folds or range(context.photos.fold_count)))
            advance(1, recipe.name)
            if context.stop.requested:
                raise KeyboardInterrupt
    return plans


class _Trial(Member):
    """A member that measures instead of working."""

    def __init__(self, context: Context, recipe: Recipe, counted: set[str]) -> None:
        super().__init__(context, recipe)
        self.counted = counted

    @cached_property
    def embeddings(self) -> NDArray[np.float16]:
        """The same numbers for every photo, [N, V, D]; they take no memory."""
        shape = len(expand_views(self.recipe.input.views)), self.facts.features
        numbers = np.random.default_rng(0).normal(size=shape).astype(np.float16)
        return np.broadcast_to(numbers, (len(self.context.photos.ids), *shape))

    @cached_property
    def facts(self) -> RecipeFacts:
        """The recipe in numbers, for as many landmarks as there are."""
        return describe(self.recipe, landmarks=len(set(self.context.photos.landmarks) - {""}))

    def plan(self, folds: Sequence[int]) -> Plan:
        """What is left to do for some folds."""
        name, memory = self.recipe.name, self.facts.training_bytes
        left = [fold for fold in folds if not self.is_finished(fold)]
        if not left or memory > self._free_memory():
            return Plan(name, not left, memory // BYTES_PER_PARAMETER, memory, fits=not left)
        untrained = [fold for fold in left if not self.is_trained(fold)]
        model = self.new_model(left[0])
        train_mode(self.recipe)(model)
        learning = sum(each.numel() for each in model.parameters() if each.requires_grad)
        rest = sum(each.numel() for each in model.parameters()) - learning
        seconds, rate = 0.0, None
        if untrained and learning:
            steps = self._count_steps(left[0])
            step = self._time_step(model, left[0], steps) * mean_step(self.recipe.train, self.recipe.input.size)
            seconds, rate = len(untrained) * steps.total * step, steps.batch / step
            memory = BYTES_PER_PARAMETER * learning + self._kept_bytes(model, left[0], steps.batch)
        describing, verifying = (
            (0.0, 0.0) if self.recipe.local is None else self._time_verification(self.recipe.local, model)
        )
        return Plan(
            name, finished=False, parameters=learning, memory_bytes=memory + WEIGHT_BYTES * rest,
            images_per_second=rate, training_seconds=seconds, preparing_seconds=self._time_preparing(left, describing),
            scoring_seconds=self._time_scoring(model, left, verifying, validates=bool(learning)),
        )  # fmt: skip

    def _free_memory(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return int(psutil.virtual_memory().available)

    def _sample(self) -> list[int]:
        count = len(self.context.photos.ids)
        return [int(row) for row in np.linspace(0, count - 1, min(SAMPLE, count))]

    def _count_steps(self, fold: int) -> Steps:
        targets, seed = self.lesson(fold).targets, self.context.seed
        return count_steps(targets, self.recipe.train, seed=seed, processes=1, label=self.recipe.name)

    def _kept_bytes(self, model: Network, fold: int, size: int) -> int:
        """What a batch of some size keeps for its backward pass."""
        lesson, config = self.lesson(fold), self.recipe.train
        first = epoch_order(
            lesson.targets, config.sampler, seed=self.context.seed, epoch=0, batch_size=config.batch_size
        )[:size]
        [batch] = self.source.train_batches(lesson.rows[first], epoch=0, batch_size=size)
        weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        train_mode(self.recipe)(model)
        targets = torch.from_numpy(lesson.targets[first]).to(self.device)
        precision = self.context.accelerator.autocast() if self.trains_mixed(model) else nullcontext()
        with precision, saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(batch, targets)
        del loss  # until here it held what was noted
        return sum(kept.values())

    def _time_step(self, model: Network, fold: int, steps: Steps) -> float:
        """Of a training step, with photos as large as in the last epochs."""
        context, lesson = self.context, self.lesson(fold)
        data = TrainingSet(self.source, lesson.rows, lesson.targets, lambda _: math.nan)
        short = {"epochs": min(STEPS, steps.total) / steps.per_epoch, "first_size": None}
        config = self.recipe.train.model_copy(update=short)
        for _ in range(2):  # by the second time, photos that are kept have been read
            clock = _Clock()
            with tempfile.TemporaryDirectory() as folder:
                session = Session(
                    Path(folder), context.accelerator, self.trains_mixed(model), clock, context.stop, self.recipe.name
                )
                train(model, data, config, session, seed=context.seed, inputs={}, set_mode=train_mode(self.recipe))
        return clock.step_seconds

    def _time_scoring(self, model: Network, left: Sequence[int], verifying: float, *, validates: bool) -> float:
        """Of everything that is scored, verified in some seconds each, or embedded to be compared with."""
        context, rows = self.context, np.resize(self._sample(), BATCH)
        targets = torch.from_numpy(self.lesson(left[0]).targets).to(self.device)
        model.eval()
        if isinstance(model.head, PhotoHead):
            width = len(model.head.get_buffer("centre"))
            model.head.fill(torch.randn(len(targets), width, device=self.device), targets)
        each = _seconds(lambda: self.predict(model, left[0], rows, keep=self.recipe.candidates)) / len(rows)
        passes = len(expand_views(self.recipe.input.views))
        seconds = 0.0
        for fold in left:
            queries = {part: len(context.photos.rows_of(part, fold)) for part in PARTS}
            taken_in = len(self.lesson(fold).rows) if isinstance(model.head, PhotoHead) else 0
            photos, asked = 0.0, sum(queries.values())
            if self.is_trained(fold):
                asked = sum(count for part, count in queries.items() if not self.is_scored(fold, part))
            else:
                epochs = math.ceil(self.recipe.train.epochs) if validates else 0
                photos = epochs * (queries["oof"] / passes + taken_in) + taken_in
            if self.recipe.local is not None:
                photos += 0 if taken_in else len(self.lesson(fold).rows)
            seconds += asked * verifying + (photos + asked) * each
        return seconds

    def _time_verification(self, config: LocalConfig, model: Network) -> tuple[float, float]:
        """Of a photo to be described, and of a query to be compared with as many photos as are verified."""
        paths, limit = [self.context.photos.paths[row] for row in self._sample()], self.context.max_pixels
        describe = partial(extract, paths, config, limit, self.verifying_device, _silent)
        if config.kind == "delf":
            width = self.facts.features
            reduction = Whitening(torch.zeros(width), torch.eye(width)[:, :DIM])  # none that is right takes longer
            describer = Describer.of(model.eval(), config, self.context.accelerator)
            describe = partial(describer.extract, paths, reduction, limit, _silent)
        began = time.perf_counter()
        points = describe()
        describing = (time.perf_counter() - began) / len(paths)
        store = LocalStore([points], SHARD)
        others = [store[row % len(points)] for row in range(1, config.candidates + 1)]
        verifying = _seconds(lambda: inliers(store[0], others, config, seed=0, device=self.verifying_device))
        return describing, verifying

    def _time_preparing(self, left: Sequence[int], describing: float) -> float:
        """Of what is made once, for all folds or some, where a photo is described in some seconds."""
        context, recipe, seconds = self.context, self.recipe, 0.0
        if recipe.local is not None:
            seconds += describing * self._undescribed(recipe.local, left)
        if recipe.backbone.frozen:
            if missing := self._missing(embedding_series(recipe)):
                seconds += missing * self._embedding_seconds()
        elif isinstance(self.source, PhotoSource) and self.source.photos.are_kept:
            seconds += len(context.photos.ids) * self._reading_seconds() / max(1, context.workers)
        return seconds

    def _undescribed(self, config: LocalConfig, left: Sequence[int]) -> int:
        """Photos to describe: once for all folds, or by each fold's own model."""
        if config.kind == "sift":
            return self._missing(local_series(config))
        run, count = self.context.run, 0
        for fold in left:
            hashes = [self.context.photos.hashes[row] for row in self.described_rows(fold, PARTS)]
            if self.is_trained(fold):
                weights = run.hash_of(weights_of(self.recipe, fold), made_by=TRAIN_ZOO)
                count += count_missing_own(run, own_series(self.recipe.name, config, fold, weights), hashes)
            else:
                count += len(hashes)
        return count

    def _missing(self, series: Series) -> int:
        """Photos of a series that are to be made, and were not counted for another member."""
        if series.folder in self.counted:
            return 0
        self.counted.add(series.folder)
        return count_missing(self.context.run, series, self.context.photos.hashes)

    def _embedding_seconds(self) -> float:
        source, rows = photo_source(self.context, self.recipe, keep=False), np.array(self._sample())
        embedder, accelerator = frozen_embedder(self.recipe, self.device), self.context.accelerator
        return _seconds(lambda: embed_rows(embedder, source, rows, accelerator, _silent)) / len(rows)

    def _reading_seconds(self) -> float:
        photos, rows = photo_source(self.context, self.recipe, keep=False).photos, self._sample()
        return _seconds(lambda: [photos[row] for row in rows]) / len(rows)


class _Clock(Progress):
    """Knows how long the steps of a training took."""

    def __init__(self) -> None:
        self.times: list[float] = []  # at its beginning, and after each step

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Steps, told of one by one."""
        del label, total, unit
        yield self._note

    def _note(self, amount: int, note: str) -> None:
        del note
        if amount or not self.times:
            self.times.append(time.perf_counter())

    @property
    def step_seconds(self) -> float:
        """The mean."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def _silent(amount: int, note: str) -> None:
    """Tells nobody."""
    del amount, note


def _seconds(work: Callable[[], object]) -> float:
    """Of the second call: the first one warms up."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def mean_step(config: TrainConfig, size: int) -> float:
    """What the mean step takes of the time of one in the last epochs, where those see larger photos.

    Args:
        config: of the training.
        size: of the input in the last epochs, pixels; a step takes as long as its photos have pixels.

    >>> mean_step(TrainConfig(epochs=8, first_size=112, last_epochs=2), 224)
    0.4375
    """
    if config.first_size is None:
        return 1.0
    large = min(1.0, config.last_epochs / config.epochs)
    return large + (1 - large) * (config.first_size / size) ** 2
