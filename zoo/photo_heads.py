"""Heads that answer from the training photos: nearest neighbours and class prototypes.

They have nothing to learn of their own. `fill` takes the training photos into their buffers, and their loss, by
triplets, teaches the embedding alone.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import faiss
import torch
from torch import Tensor
from torch.nn import functional

from zoo.heads import Compared, LandmarkHead, cosines
from zoo.recipe import HeadConfig

NEIGHBOURS_VERSION = 2  # of what a NeighbourHead keeps; raised when older weights no longer fit
NEGATIVES = 5  # the nearest photos of nothing that count; GLR 2020's winner took 5 for training photos, 10 for queries
NEAREST_OF_CLASS = 5  # photos whose mean counts; a single one may be near by accident, and many lie on another side
VOTERS = 20  # nearest photos whose votes are counted: enough for shares in steps of 0.05
CHUNK = 1024  # photos compared with all negatives at once


class PhotoHead(LandmarkHead):
    """What photo heads share: directions as seen from the mean of all training photos, and the triplet loss."""

    kept: ClassVar[str]  # the buffer of vectors that queries are compared with, [N, D]

    def __init__(self, width: int, classes: int, config: HeadConfig, none_class: int | None) -> None:
        super().__init__()
        self.classes, self.config, self.none_class = classes, config, none_class
        self.register_buffer("centre", torch.zeros(width))

    def loss(self, embedding: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The triplet loss of embeddings [B, D] and classes int64 [B]; there are no labels to smooth in it."""
        del smoothing
        direction = functional.normalize(embedding.float(), dim=1)
        return triplet_loss(direction, targets, self.config.triplet_margin, none_class=self.none_class)

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> logits float32 [B, C]."""
        return self.answer(self.compare(embedding))

    def compare(self, embedding: Tensor) -> Compared:
        """[B, D] -> directions as seen from the centre [B, D], and their products with what is kept, float32 [B, N]."""
        directions = self._direction(embedding)
        return Compared(directions, cosines(directions, self.get_buffer(self.kept)))

    @abstractmethod
    def fill(self, embeddings: Tensor, targets: Tensor) -> None:
        """Take the training photos in: embeddings [N, D] and their classes int64 [N]."""

    def _direction(self, embedding: Tensor) -> Tensor:
        return functional.normalize(functional.normalize(embedding.float(), dim=1) - self.get_buffer("centre"), dim=1)

    def _take_centre(self, embeddings: Tensor) -> Tensor:
        """Keep the centre of embeddings [N, D]; returns their directions from it, [N, D]."""
        self.get_buffer("centre").copy_(functional.normalize(embeddings.float(), dim=1).mean(dim=0))
        return self._direction(embeddings)


class NeighbourHead(PhotoHead):
    """Embedding to logits by the training photos themselves, each of which votes for its class.

    vote = "kernel": every photo votes with exp(scale * cosine), and the logit of a class is the logarithm of its
    photos' votes, so the softmax is a kernel density estimate of the classes; large classes gain by their size.
    vote = "top-k": the K nearest photos vote with their cosines, and the logit of a class is scale times the sum of its
    votes / min(K, photos of the class): one near photo is all that a landmark with one can have, a large one needs K.

    Args:
        width: D of the embedding.
        classes: C.
        photos: N training photos.
        config: scale, vote, neighbours and triplet_margin.
        none_class: the class of 'none of them', if there is one.
    """

    kept = "index"  # the training photos' directions as given to `fill`: products are cosines

    def __init__(
        self, width: int, classes: int, photos: int, config: HeadConfig, none_class: int | None = None
    ) -> None:
        super().__init__(width, classes, config, none_class)
        self.register_buffer("index", torch.zeros(photos, width))
        self.register_buffer("targets", torch.zeros(photos, dtype=torch.long))
        self.register_buffer("none_cosine", torch.zeros(photos))

    @torch.no_grad()
    def fill(self, embeddings: Tensor, targets: Tensor) -> None:
        """Take the training photos in: embeddings [N, D] and their classes int64 [N]."""
        index = self.get_buffer("index").copy_(self._take_centre(embeddings))
        self.get_buffer("targets").copy_(targets)
        negatives = index[self._is_none()]
        if len(negatives):
            near = [_mean_of_nearest(cosines(photos, negatives)) for photos in torch.split(index, CHUNK)]
            self.get_buffer("none_cosine").copy_(torch.cat(near))

    def answer(self, compared: Compared) -> Tensor:
        """Logits float32 [B, C]; a class without a vote has that of a vote at the far side, -scale."""
        return self._kernel_votes(compared.products) if self.config.vote == "kernel" else self._nearest_votes(compared)

    def query_features(self, compared: Compared) -> dict[str, Tensor]:
        """How near queries lie to the negatives, the training photos of nothing; without any, nothing is known of it.

        Henkel and Singer, "Supporting large-scale image recognition with out-of-domain samples" (arXiv 2010.01650), the
        winner of GLR 2020: a training photo's similarity to a query counts less its own similarity to its nearest
        negatives, and the best that is left less the query's. What resembles everything is thus believed in nothing.

        Args:
            compared: from `compare`.

        Returns:
            Float32 [B] each, cosines being seen from the centre of all training photos:
            none_cosine: the query's mean cosine to its nearest negatives, -1..1.
            nearest_none_cosine: the mean over the query's nearest landmark photos of that same number of theirs, -1..1.
            trust: the greatest cosine to a landmark photo less that photo's none_cosine, less the query's own, -3..3.
        """
        is_none = self._is_none()
        if not is_none.any():
            return {}
        of_query = _mean_of_nearest(compared.products[:, is_none])
        to_landmarks, of_photos = compared.products[:, ~is_none], self.get_buffer("none_cosine")[~is_none]
        nearest = to_landmarks.topk(min(NEGATIVES, len(of_photos)), dim=1).indices
        return {
            "none_cosine": of_query,
            "nearest_none_cosine": of_photos[nearest].mean(dim=1),
            "trust": (to_landmarks - of_photos).amax(dim=1) - of_query,
        }

    def evidence(self, compared: Compared, classes: Tensor) -> dict[str, Tensor]:
        """What the training photos say of candidates; a class without photos has 0 throughout.

        Args:
            compared: from `compare`.
            classes: the candidates, int64 [B, K].

        Returns:
            Float32 [B, K] each, cosines being seen from the centre of all training photos:
            cosine: the greatest to a photo of the class, -1..1.
            mean_cosine: the mean over the class's nearest `NEAREST_OF_CLASS` photos, or all when it has fewer, -1..1.
            votes: the class's share of the query's nearest `VOTERS` photos, photos of nothing among them, 0..1.
            support_none_cosine: what `fill` found for the class's nearest photo, the mean cosine to its own nearest
                negatives, -1..1; only where there are negatives. The paper of `query_features` takes it off the cosine.
        """
        targets = self.get_buffer("targets")
        near, nearest, sizes = nearest_of_classes(compared.products, targets, classes, NEAREST_OF_CLASS)
        voters = targets[self.nearest(compared, VOTERS)]  # [B, V]
        told = {
            "cosine": near[..., 0],
            "mean_cosine": near.sum(dim=2) / sizes.clamp(1, NEAREST_OF_CLASS),
            "votes": (voters[:, None] == classes[..., None]).float().mean(dim=2),
        }
        if self._is_none().any():
            told["support_none_cosine"] = self.get_buffer("none_cosine")[nearest[..., 0]].where(sizes > 0, 0)
        return told

    def nearest_cosines(self, compared: Compared) -> Tensor:
        """The cosine of each class's nearest photo, float32 [B, C]; 0 for 'none of them', whose photos are unlike."""
        targets, products = self.get_buffer("targets"), compared.products
        cosine = products.new_zeros(len(products), self.classes)
        cosine = cosine.scatter_reduce(1, targets.expand_as(products), products, "amax", include_self=False)
        if self.none_class is not None:
            cosine[:, self.none_class] = 0
        return cosine

    def nearest(self, compared: Compared, count: int) -> Tensor:
        """Positions of the nearest photos as given to `fill`, nearest first, int64 [B, min(count, N)].

        On a CPU FAISS's flat search finds them, that of its `IndexFlatIP` without a copy of the photos of its own; on
        other devices the greatest cosines.
        """
        count = min(count, compared.products.shape[1])
        if compared.vectors.device.type != "cpu":
            return compared.products.topk(count, dim=1).indices
        photos, queries = self.get_buffer("index").numpy(), compared.vectors.detach().numpy()
        _, nearest = faiss.knn(queries, photos, count, metric=faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(nearest)

    def _is_none(self) -> Tensor:
        """Which photos are negatives: bool [N]."""
        return self.get_buffer("targets") == (-1 if self.none_class is None else self.none_class)

    def _kernel_votes(self, cosine: Tensor) -> Tensor:
        scale = self.config.scale
        votes = torch.exp(scale * (cosine - 1))  # [B, N] in 0..1
        total = torch.full((len(votes), self.classes), math.exp(-2 * scale), device=votes.device)
        return total.index_add(1, self.get_buffer("targets"), votes).log() + scale

    def _nearest_votes(self, compared: Compared) -> Tensor:
        targets, count = self.get_buffer("targets"), self.config.neighbours
        photos = self.nearest(compared, count)  # [B, K]
        votes = compared.products.gather(1, photos)
        total = votes.new_zeros(len(votes), self.classes).scatter_add(1, targets[photos], votes)
        has_vote = torch.zeros_like(total, dtype=torch.bool).scatter(1, targets[photos], value=True)
        most = torch.bincount(targets, minlength=self.classes).clamp(1, count)  # votes that a class can have, [C]
        return self.config.scale * torch.where(has_vote, total / most, -1.0)


def nearest_of_classes(cosine: Tensor, targets: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The photos of some classes that are nearest to some queries.

    Args:
        cosine: of each query to each photo, [B, N].
        targets: the photos' classes, int64 [N].
        classes: of each query, int64 [B, K].
        count: photos of a class to find.

    Returns:
        Their cosines float32 [B, K, count], nearest first, 0 behind the last photo of a small class; their positions
        int64 [B, K, count], any behind it; and how many photos each class has, int64 [B, K].
    """
    sizes = torch.bincount(targets, minlength=int(classes.max()) + 1)
    order, starts = targets.argsort(stable=True), sizes.cumsum(0) - sizes  # a class's photos stand together in `order`
    found = []
    for column in classes.T:  # [B]; one at a time, since the largest class of all K would widen all of them
        place = torch.arange(max(count, int(sizes[column].max())), device=order.device)  # [S] within the class
        photos = order[(starts[column][:, None] + place).clamp_max(len(order) - 1)]  # [B, S]
        own = cosine.gather(1, photos).masked_fill(place >= sizes[column][:, None], -torch.inf)
        near, at = own.topk(count, dim=1)
        found.append((near.where(near.isfinite(), 0), photos.gather(1, at)))
    near, nearest = (torch.stack(tensors, dim=1) for tensors in zip(*found, strict=True))
    return near, nearest, sizes[classes]


def _mean_of_nearest(cosine: Tensor) -> Tensor:
    """[A, B] -> [A]: the mean of the greatest `NEGATIVES`, or of all B when there are fewer."""
    return cosine.topk(min(NEGATIVES, cosine.shape[1]), dim=1).values.mean(dim=1)


class PrototypeHead(PhotoHead):
    """Embedding to logits by the nearest class prototype: the mean direction of a class, shrunken towards the centre.

    prototype = sum of the class's directions / (photos + shrink), as if `shrink` photos at the centre of all belonged
    to each class. logit = -scale/2 * |x - prototype|², up to what all classes share: scale * (x·p - |p|²/2), the score
    of Gaussian classes of equal spread and odds. This is what lets a landmark with one to five photos compete. The mean
    of many photos is short, that of one photo has length 1: by the plain distance the few lose, by the plain product
    they win everywhere, and by the cosine they pay for a noisy direction. The shrinkage brings the lengths together,
    and |p|²/2 asks the surer prototype for the better match. Tibshirani et al., "Diagnosis of multiple cancer types by
    shrunken centroids of gene expression" (2002), with the posterior mean under a Gaussian prior as the shrinkage.

    Args:
        width: D of the embedding.
        classes: C.
        config: scale, shrink and triplet_margin.
        none_class: the class of 'none of them', if there is one.
    """

    kept = "prototypes"  # one per class: a product is the cosine times the prototype's length

    def __init__(self, width: int, classes: int, config: HeadConfig, none_class: int | None = None) -> None:
        super().__init__(width, classes, config, none_class)
        self.register_buffer("prototypes", torch.zeros(classes, width))

    @torch.no_grad()
    def fill(self, embeddings: Tensor, targets: Tensor) -> None:
        """Take the training photos in: embeddings [N, D] and their classes int64 [N], each class at least once."""
        prototypes = self.get_buffer("prototypes")
        photos = torch.bincount(targets, minlength=self.classes)
        total = torch.zeros_like(prototypes).index_add(0, targets, self._take_centre(embeddings))
        prototypes.copy_(total / (photos[:, None] + self.config.shrink))

    def answer(self, compared: Compared) -> Tensor:
        """Logits float32 [B, C] in -1.5 * scale .. 0.5 * scale."""
        return self.config.scale * (compared.products - self.get_buffer("prototypes").square().sum(dim=1) / 2)

    def evidence(self, compared: Compared, classes: Tensor) -> dict[str, Tensor]:
        """cosine: of a query's direction and the candidate's prototype, float32 [B, K] in -1..1; 0 at the centre."""
        length = self.get_buffer("prototypes").norm(dim=1)[classes]
        return {"cosine": compared.products.gather(1, classes) / length.clamp_min(1e-12)}


def triplet_loss(embeddings: Tensor, targets: Tensor, margin: float, *, none_class: int | None = None) -> Tensor:
    """The triplet loss of a batch, with semi-hard negatives.

    Schroff, Kalenichenko and Philbin, "FaceNet" (arXiv 1503.03832), equation 3: max(0, d(a, p) - d(a, n) + margin) with
    d the squared Euclidean distance, here as the mean over all ordered pairs (a, p) of two photos of a landmark. The
    negative of a pair is the closest photo of another class that is farther from a than p is (section 3.2): inside the
    margin it is semi-hard, beyond it the loss is zero. When all are closer than p, it is the farthest of them, since
    harder ones collapse the embedding and a pair without a negative would never be mended.

    Args:
        embeddings: [B, D], unit vectors.
        targets: classes, int64 [B].
        margin: in squared distance, which lies in 0..4.
        none_class: photos of this class are alike in nothing: they are negatives only.

    Returns:
        A scalar; for a batch without a triplet zero, with a gradient of zero.
    """
    distance = 2 - 2 * cosines(embeddings, embeddings)  # [B, B]
    same = targets[:, None] == targets
    is_landmark = targets != (-1 if none_class is None else none_class)
    alike = same & is_landmark & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    anchors, positives = torch.nonzero(alike & ~same.all(), as_tuple=True)  # [T]; of one class alone none
    reach = distance[anchors, positives]
    others = distance[anchors]  # [T, B]
    is_negative = ~same[anchors]
    nearest = others.where(is_negative & (others > reach[:, None]), math.inf).amin(dim=1)
    farthest = others.where(is_negative, -math.inf).amax(dim=1)
    losses = functional.relu(reach - torch.where(nearest.isfinite(), nearest, farthest) + margin)
    return losses.sum() / max(1, len(losses))  # not the mean, which of nothing is NaN
