"""The order of the training photos in an epoch, and what it makes of the class sizes.

An order depends on (seed, epoch) and the photos' classes only, so a resumed training repeats it, and it is equally long
in every epoch. A class is a landmark, or 'none of them', which every sampler treats as one more class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from engine.core.config import Section
from engine.core.errors import ConfigError

Positions = NDArray[np.int64]  # of training photos, 0..N-1
_LASTING = 2**32  # stands for the epoch where a choice holds for all of them; no training has so many


class SamplerConfig(Section):
    """How often each class is seen.

    - shuffled: each photo once.
    - power: N photos drawn by class size ** -power; a rare class repeats photos within an epoch.
    - log: N photos drawn by 1 / log(1 + class size); milder than power, and repeats as it does.
    - class-aware: each class equally often, N photos in all; a rare class repeats photos within an epoch.
    - under: at most `most` photos of a class; the others have their turn in later epochs. Nothing repeats.
    - over: at least `least` photos of a class; a class with fewer repeats them.
    - pk: batches of P landmarks with `photos` photos each, as a triplet loss wants them; a class with fewer repeats
      them within the batch.
    """

    kind: Literal["shuffled", "power", "log", "class-aware", "under", "over", "pk"] = "shuffled"
    power: float = Field(0.5, gt=0, le=1)  # half-way, on a log scale, from the photos' shares (0) to equal classes (1)
    most: int = Field(50, ge=1)  # of a class of thousands an epoch still shows every kind of view
    least: int = Field(10, ge=1)  # one photo seen ten times, augmented, is about what a short training remembers
    photos: int = Field(4, ge=2)  # K; FaceNet has 40 in batches of 1,800, a batch of 32 has room for 4 of 8 landmarks


@dataclass(frozen=True, eq=False)
class _Shelves:
    """The photos of each class in a random order.

    Attributes:
        photos: class after class, [N].
        first: where each class begins, [C].
        sizes: photos per class, [C].
    """

    photos: Positions
    first: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def fill(cls, targets: NDArray[np.int64], chance: np.random.Generator) -> _Shelves:
        shuffled = chance.permutation(len(targets))
        sizes = np.bincount(targets)
        return cls(shuffled[np.argsort(targets[shuffled], kind="stable")], np.cumsum(sizes) - sizes, sizes)

    def take(self, classes: NDArray[np.int64], turns: NDArray[np.int64]) -> Positions:
        """The photo of each class [S] whose turn it is, 0, 1, 2, … [S], from the beginning again after the last."""
        return self.photos[self.first[classes] + turns % self.sizes[classes]]


def epoch_order(
    targets: NDArray[np.int64], config: SamplerConfig, *, seed: int, epoch: int, batch_size: int
) -> Positions:
    """The training photos of an epoch, in order.

    Args:
        targets: the class of each training photo, int [N], N at least 1; classes without photos do not count.
        config: the sampler.
        seed: 0 or more.
        epoch: 0 or more.
        batch_size: photos per training step; only 'pk' looks at it.

    Returns:
        Positions in `targets`, int64 [M]. M is the same in every epoch: N, or for 'under' and 'over' the sum of the
        bounded class sizes, or for 'pk' whole batches, N // batch_size of them and at least one.

    Raises:
        ConfigError: for 'pk', when a batch is not made of two or more landmarks of K photos, or of more than there are.
    """
    classes = np.unique(targets, return_inverse=True)[1]
    sizes, chance = np.bincount(classes), _chance(seed, epoch)
    match config.kind:
        case "shuffled":
            return chance.permutation(len(classes))
        case "power":
            return _draw(sizes[classes] ** -config.power, chance)
        case "log":
            return _draw(1 / np.log1p(sizes[classes]), chance)
        case "pk":
            return _pk_batches(classes, config.photos, batch_size, chance)
    before, after = (_shown_in(epochs, sizes, config) for epochs in (epoch, epoch + 1))
    return chance.permutation(_in_turn(classes, before, after, _chance(seed, _LASTING)))


def sampled_sizes(
    targets: NDArray[np.int64], config: SamplerConfig, *, seed: int, epochs: int, batch_size: int
) -> NDArray[np.float64]:
    """Mean photos per class and epoch over the first `epochs`, [C]; `numpy.bincount(targets)` is what there are.

    The other arguments are those of `epoch_order`; C is the highest class and one.

    >>> targets = np.repeat([0, 1], [5, 1])
    >>> sampled_sizes(targets, SamplerConfig(kind="over", least=3), seed=0, epochs=2, batch_size=4).tolist()
    [5.0, 3.0]
    """
    orders = (epoch_order(targets, config, seed=seed, epoch=epoch, batch_size=batch_size) for epoch in range(epochs))
    total = sum(np.bincount(targets[order], minlength=int(targets.max()) + 1) for order in orders)
    return np.asarray(total / epochs)


def _chance(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


def _draw(weight: NDArray[np.floating], chance: np.random.Generator) -> Positions:
    return chance.choice(len(weight), size=len(weight), p=weight / weight.sum())


def _shown_in(epochs: int, sizes: NDArray[np.int64], config: SamplerConfig) -> NDArray[np.int64]:
    """How many photos of each class so many epochs show together, [C]."""
    if config.kind == "under":
        return epochs * np.minimum(sizes, config.most)
    if config.kind == "over":
        return epochs * np.maximum(sizes, config.least)
    # class-aware: class after class, one photo each, round and round across the ends of epochs
    in_all = int(epochs * sizes.sum())
    return np.arange(in_all, in_all + len(sizes)) // len(sizes)


def _in_turn(
    classes: NDArray[np.int64], before: NDArray[np.int64], after: NDArray[np.int64], chance: np.random.Generator
) -> Positions:
    """The photos of each class from turn before[c] to turn after[c], class after class.

    The turns go on from one epoch to the next, so every photo of a class is seen before one of them is seen again.
    """
    counts = after - before
    shown = np.repeat(np.arange(len(counts)), counts)  # [M] classes
    turns = np.arange(len(shown)) + np.repeat(after - np.cumsum(counts), counts)
    return _Shelves.fill(classes, chance).take(shown, turns)


def _pk_batches(classes: NDArray[np.int64], photos: int, batch_size: int, chance: np.random.Generator) -> Positions:
    """Batches of P landmarks x K photos, batch after batch; those shown least have precedence, chance among equals."""
    shelves = _Shelves.fill(classes, chance)
    known = len(shelves.sizes)
    landmarks, rest = divmod(batch_size, photos)  # P
    if rest or not 2 <= landmarks <= known:
        raise ConfigError(
            f"sampler 'pk': a batch of {batch_size} is not 2 to {known} landmarks x {photos} photos",
            hint=f"choose a batch size of {photos} times the landmarks in a batch",
        )
    shown = np.zeros(known, np.int64)
    batches = []
    for _ in range(max(1, len(classes) // batch_size)):
        nearest = np.argpartition(shown + chance.random(known), landmarks - 1)[:landmarks]
        chosen = np.sort(nearest)  # a partition's own order differs between processors
        turns = shown[chosen, None] * photos + np.arange(photos)  # [P, K]
        batches.append(shelves.take(np.repeat(chosen, photos), turns.ravel()))
        shown[chosen] += 1
    return np.concatenate(batches)
