"""Heads: from an embedding [B, D] to logits [B, C] over the landmarks, and last 'none of them' when a member has it.

Every head is a module with `loss` beside `forward`, and knows nothing of the backbone. Those here are learned, by the
cross-entropy of their logits; those that answer from the training photos are in `zoo.photo_heads`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.core.errors import ConfigError
from zoo.recipe import HeadConfig

HADAMARD_SEED = 1801_04540  # any would do; it is the paper's number
FACTORS = 5  # 2 x 2 matrices per pass, as one of 32 x 32: 3 passes over memory for 14,951 landmarks instead of 14
Tell = Callable[[Tensor], dict[str, Tensor]]  # what is known of candidates: classes int64 [B, K] -> float32 [B, K] each
LEAST_SQUARED_SINE = 1e-6  # an angle of 0.001 rad: what fp32 still resolves in 1 - cos²


class Compared(NamedTuple):
    """What a head compares of B queries, made once a batch; all else that it says of them is told from it.

    Attributes:
        vectors: the embeddings, or what the head makes of them, [B, D].
        products: of these and the N vectors that the head keeps, [B, N]; of learned heads, which keep none, [B, 0].
    """

    vectors: Tensor
    products: Tensor


class LandmarkHead(nn.Module, ABC):
    """From embeddings [B, D] to logits [B, C], and with classes to the loss that trains the network."""

    @abstractmethod
    def loss(self, embedding: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The loss of embeddings [B, D] and classes int64 [B], a scalar; smoothing: of the labels, 0..1."""

    def compare(self, embedding: Tensor) -> Compared:
        """What all else is told from, of embeddings [B, D]."""
        return Compared(embedding, embedding[:, :0])

    def answer(self, compared: Compared) -> Tensor:
        """The logits [B, C], from what `compare` gives."""
        logits: Tensor = self(compared.vectors)
        return logits

    def query_features(self, compared: Compared) -> dict[str, Tensor]:
        """What else the head can tell of queries, from `compare`: name -> float32 [B]; for most heads nothing."""
        del compared
        return {}

    def evidence(self, compared: Compared, classes: Tensor) -> dict[str, Tensor]:
        """What else it can tell of candidates int64 [B, K], likewise: name -> float32 [B, K]; for most nothing."""
        del compared, classes
        return {}


class _LearnedHead(LandmarkHead):
    """What learned heads share: the embedding's norm and dropout, and the cross-entropy."""

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm1d(width, affine=False) if config.norm == "batch" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def prepare(self, embedding: Tensor) -> Tensor:
        """[B, D] -> float32 [B, D], normalised as the recipe says and in training with dropout."""
        embedding = embedding.float()
        if self.config.norm == "l2":
            embedding = functional.normalize(embedding, dim=1) * embedding.shape[1] ** 0.5  # unit variance per feature
        prepared: Tensor = self.dropout(self.norm(embedding))
        return prepared

    def loss(self, embedding: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Mean cross-entropy of embeddings [B, D] and classes int64 [B]; smoothing: 0..1, spread over all classes."""
        return functional.cross_entropy(self(embedding), targets, label_smoothing=smoothing)


class Head(_LearnedHead):
    """Embedding to logits over the classes: one linear layer, on the embedding as `config` says.

    Args:
        width: D of the embedding.
        classes: L landmarks, plus one for 'none of them' when the member has that class.
        config: norm, cosine, scale and dropout.
    """

    def __init__(self, width: int, classes: int, config: HeadConfig) -> None:
        super().__init__(width, config)
        self.linear = nn.Linear(width, classes, bias=not config.cosine)
        nn.init.normal_(self.linear.weight, std=0.01)  # starts at equal odds whatever the embedding's length
        if not config.cosine:
            nn.init.zeros_(self.linear.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> logits float32 [B, C]."""
        embedding = self.prepare(embedding)
        if not self.config.cosine:
            logits: Tensor = self.linear(embedding)
            return logits.float()
        weight = functional.normalize(self.linear.weight, dim=1)
        return self.config.scale * functional.linear(functional.normalize(embedding, dim=1), weight).float()


class HadamardHead(_LearnedHead):
    """A fixed classifier: each class is a row of a Hadamard matrix, and only one scale and the biases are learned.

    Hoffer, Hubara and Soudry, "Fix your classifier" (arXiv 1801.04540): logits = scale * H x̂ + bias, with x̂ the
    L2-normalised embedding. H has C rows and D columns of Sylvester's matrix of order n = 2^ceil(log2(max(D, C))),
    divided by sqrt(D): rows are unit vectors, products are cosines, and logits less their bias lie in -scale..scale.
    Columns are drawn at random, since the first D repeat their rows when C > D; columns 1, 2, 4 … are always among
    them, and these alone tell all n rows apart. The constant row and column are taken last: the embeddings of a ReLU
    lean to the one, and the other tells no class from another. Classes stand still, so the backbone has to learn.

    Args:
        width: D of the embedding.
        classes: C.
        config: norm and dropout; scale at the start: at 16 a cosine of 1 outweighs 14,950 of 0 by 594 to one.

    Raises:
        ConfigError: when D < log2(n), so that classes would have to share a row.
    """

    def __init__(self, width: int, classes: int, config: HeadConfig) -> None:
        super().__init__(width, config)
        bits = (max(width, classes) - 1).bit_length()
        if width < bits:
            raise ConfigError(
                f"head.kind = 'hadamard': an embedding of {width} cannot tell {classes} classes apart",
                hint=f"use a backbone with {bits} features or more",
            )
        self.order = 2**bits
        chance = torch.Generator().manual_seed(HADAMARD_SEED)
        self.register_buffer("rows", _draw_indices(self.order, classes, [], chance))
        self.register_buffer("columns", _draw_indices(self.order, width, [2**bit for bit in range(bits)], chance))
        self.scale = nn.Parameter(torch.tensor(config.scale))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> logits float32 [B, C]."""
        direction = functional.normalize(self.prepare(embedding), dim=1)  # [B, D]
        padded = direction.new_zeros(len(direction), self.order).index_copy(1, self.get_buffer("columns"), direction)
        cosine = walsh_hadamard(padded).index_select(1, self.get_buffer("rows")) / math.sqrt(direction.shape[1])
        return self.scale * cosine + self.bias


def _draw_indices(order: int, count: int, first: list[int], chance: torch.Generator) -> Tensor:
    """Distinct indices below `order`: those of `first`, then random ones, then 0."""
    priority = torch.rand(order, generator=chance, device="cpu")  # also in a network built on the meta device
    priority[0] = -1
    priority[first] = 2
    return priority.topk(count).indices.sort().values  # in order: neighbours in memory are read together


def walsh_hadamard(x: Tensor) -> Tensor:
    """The product with Sylvester's Hadamard matrix of order n, in O(n log n) and without the matrix.

    It is the Kronecker product of log2(n) matrices of order 2. Each pass multiplies by the first `FACTORS` of those
    left and turns the vector, so that the next ones come first; after the last all is back in its place.

    Args:
        x: [..., n], n a power of two.

    Returns:
        [..., n], not divided by anything: a second transform gives n * x.

    Raises:
        ValueError: when n is no power of two.

    >>> walsh_hadamard(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([10., -2., -4.,  0.])
    """
    left = x.shape[-1].bit_length() - 1
    if x.shape[-1] != 1 << left:
        raise ValueError(f"{x.shape[-1]} is no power of two")
    with torch.autocast(x.device.type, enabled=False):
        while left:
            bits = min(FACTORS, left)
            left -= bits
            parts = x.reshape(*x.shape[:-1], 2**bits, -1)
            x = (parts.mT @ _sylvester(bits, x)).flatten(-2)
    return x


def _sylvester(bits: int, like: Tensor) -> Tensor:
    """Sylvester's matrix of order 2 ** bits, of the type of another tensor."""
    return reduce(torch.kron, [like.new_tensor([[1, 1], [1, -1]])] * bits)


class ArcFaceHead(_LearnedHead):
    """Cosines to several centres per class, trained with a margin between angles that is wider for smaller classes.

    The loss is the cross-entropy with the true class's cos(θ) replaced by cos(θ + m): Deng et al., "ArcFace" (arXiv
    1801.07698), equation 3, with the sub-centres of Deng et al., "Sub-center ArcFace" (2020): a class's cosine is the
    largest over its centres. The margins are `class_margins`. A margin is never part of a prediction.

    Args:
        width: D of the embedding.
        counts: training photos of each class, [C].
        config: norm, dropout, scale, centres, margin_low and margin_high.
    """

    def __init__(self, width: int, counts: Tensor, config: HeadConfig) -> None:
        super().__init__(width, config)
        self.weight = nn.Parameter(torch.empty(len(counts), config.centres, width))
        nn.init.normal_(self.weight, std=0.01)  # only directions count
        self.register_buffer("margins", class_margins(counts, config.margin_low, config.margin_high))

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> logits float32 [B, C] in -scale..scale."""
        return self.config.scale * self._cosine(embedding)

    def loss(self, embedding: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Mean cross-entropy with margins, of embeddings [B, D] and classes int64 [B]; smoothing: 0..1."""
        cosine, own = self._cosine(embedding), targets[:, None]
        widened = widen_angle(cosine.gather(1, own), self.get_buffer("margins")[own])
        logits = self.config.scale * cosine.scatter(1, own, widened)
        return functional.cross_entropy(logits, targets, label_smoothing=smoothing)

    def _cosine(self, embedding: Tensor) -> Tensor:
        direction = functional.normalize(self.prepare(embedding), dim=1)
        centres = functional.normalize(self.weight, dim=2)  # [C, k, D]
        cosine = cosines(direction, centres.flatten(0, 1))  # [B, C * k]
        return cosine.view(len(cosine), *centres.shape[:2]).amax(dim=2)


def class_margins(counts: Tensor, low: float, high: float) -> Tensor:
    """A margin for each class, in radians, linear in size^(-1/4): `low` for the largest, `high` for the smallest.

    Ha et al., "Google Landmark Recognition 2020 Competition Third Place Solution" (arXiv 2010.05350).

    Args:
        counts: photos of each class, [C]; fewer than one counts as one.
        low: the largest class's margin.
        high: the smallest class's margin.

    Returns:
        float32 [C]; halfway when all classes have the same size.

    >>> class_margins(torch.tensor([1, 16, 81]), 0.1, 0.5)
    tensor([0.5000, 0.2000, 0.1000])
    """
    rarity = counts.clamp_min(1).double() ** -0.25
    spread = rarity.max() - rarity.min()
    share = (rarity - rarity.min()) / spread if spread > 0 else torch.full_like(rarity, 0.5)
    return (low + (high - low) * share).float()


def widen_angle(cosine: Tensor, margin: Tensor) -> Tensor:
    """cos(θ + m) from cos(θ), never above it and rising with it.

    Computed as cos θ cos m - sin θ sin m, whose gradient stays finite with sin θ held above 0.001; that of the arc
    cosine does not at θ = 0. Past θ = π - m, where cos(θ + m) would rise again, it goes on as cos θ - m sin m.

    Args:
        cosine: -1..1.
        margin: radians, 0..π/2, broadcast with `cosine`.
    """
    sine = (1 - cosine.square()).clamp_min(LEAST_SQUARED_SINE).sqrt()
    widened = cosine * margin.cos() - sine * margin.sin()
    return torch.where(cosine > -margin.cos(), widened, cosine - margin * margin.sin())


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """[A, D] x [B, D] -> [A, B] in fp32, also where autocast would round it: cosines differ in the third digit."""
    with torch.autocast(left.device.type, enabled=False):
        return left.float() @ right.float().T
