"""Logits to the project's one table: the best K landmarks per query, and a few numbers per query.

Of each of the K, members that compare photos tell more than score and rank: their evidence. Nothing of size queries x
landmarks outlives one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from engine.core.tables import CANDIDATES
from zoo.heads import Compared, LandmarkHead, Tell
from zoo.network import Network
from zoo.sources import Rows, Source

# of every member; those that only some heads can tell come after them, see `LandmarkHead.query_features`
FEATURES: tuple[str, ...] = ("max", "margin", "entropy", "logsumexp", "norm", "p_none")
# (queries, embeddings [B, D], what the head compares of them, logits [B, C]) -> logits [B, C], evidence of candidates
Refine = Callable[[Rows, Tensor, Compared, Tensor], tuple[Tensor, Tell]]
BATCH = 64  # photos per forward pass: larger ones gain nothing on two cores and little on a GPU at 224 px


@dataclass(frozen=True, eq=False)
class Predictions:
    """The best K classes of each query.

    Attributes:
        scores: float32 [Q, K] probabilities, descending.
        classes: int64 [Q, K] positions among the member's landmarks.
        features: float32 [Q, F].
        names: of the F features: `FEATURES`, then those that only some heads can tell.
        evidence: what only some members can tell of each of these classes, float32 [Q, K] by name; see
            `zoo.photo_heads` for that of neighbours and prototypes, `zoo.verification` for inliers.
    """

    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    features: NDArray[np.float32]
    names: tuple[str, ...] = FEATURES
    evidence: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@torch.inference_mode()
def predict(
    model: Network,
    source: Source,
    rows: Rows,
    *,
    landmarks: int,
    keep: int,
    accelerator: Accelerator,
    mixed: bool,
    refine: Refine | None = None,
) -> Predictions:
    """Score some photos; logits and embeddings are averaged over the source's views.

    Args:
        model: in evaluation mode.
        source: gives the views of each batch.
        rows: the queries.
        landmarks: L; a class behind them is 'none of them'.
        keep: K, at most L.
        accelerator: device and precision.
        mixed: whether the model runs in the accelerator's precision.
        refine: changes each batch's logits by what else is known of its photos, and tells of candidates instead of the
            model's head.
    """
    parts, evidence, names = [], [], FEATURES
    for number, views in enumerate(source.view_batches(rows, batch_size=BATCH)):
        with accelerator.autocast() if mixed else nullcontext():
            embedding, compared, logits = _look([model.embed(view) for view in views], model.head)
        tell: Tell = partial(model.head.evidence, compared)
        if refine is not None:
            logits, tell = refine(rows[number * BATCH : (number + 1) * BATCH], embedding, compared, logits)
        told = model.head.query_features(compared)
        names = (*FEATURES, *told)
        top, classes, features = summarise(logits, embedding, landmarks=landmarks, keep=keep)
        own = [values.cpu().numpy() for values in told.values()]
        parts.append((top, classes, np.column_stack([features, *own])))
        evidence.append(tell(torch.from_numpy(classes).to(logits.device)))
    scores, best, numbers = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    known = {name: torch.cat([batch[name] for batch in evidence]).cpu().numpy() for name in evidence[0]}
    return Predictions(scores, best, numbers, names, known)


def _look(views: Sequence[Tensor], head: LandmarkHead) -> tuple[Tensor, Compared, Tensor]:
    """Embeddings [B, D] of each view -> their mean, what the head compares of it, and the mean logits [B, C]."""
    embedding = _mean(views)
    if len(views) == 1:  # then its cosines to all training photos need not be computed twice
        compared = head.compare(embedding)
        return embedding, compared, head.answer(compared).float()
    logits = _mean([head(view) for view in views])
    return embedding, head.compare(embedding), logits


def by_mean_embedding(head: LandmarkHead, refine: Refine | None = None) -> Refine:
    """For `predict`: the logits of the views' mean embedding instead of their mean logits, before what else refines."""

    def answer(rows: Rows, embedding: Tensor, compared: Compared, logits: Tensor) -> tuple[Tensor, Tell]:
        logits = head.answer(compared).float()
        if refine is None:
            return logits, partial(head.evidence, compared)
        return refine(rows, embedding, compared, logits)

    return answer


@torch.inference_mode()
def embed(model: Network, source: Source, rows: Rows, *, accelerator: Accelerator, mixed: bool) -> Tensor:
    """Embeddings of some photos, float32 [N, D], averaged over the source's views; arguments as in `predict`."""
    parts = []
    for views in source.view_batches(rows, batch_size=BATCH):
        with accelerator.autocast() if mixed else nullcontext():
            parts.append(_mean([model.embed(view) for view in views]))
    return torch.cat(parts)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.float() for tensor in tensors]).mean(dim=0)


def summarise(
    logits: Tensor, embeddings: Tensor, *, landmarks: int, keep: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """The best K of each row of logits [B, C], and `FEATURES` [B, 6].

    The probabilities are over all C classes, 'none of them' included, so a photo of nothing has low scores throughout.
    """
    probability = logits.softmax(dim=1)  # [B, C]
    top, classes = probability[:, :landmarks].topk(min(max(keep, 2), landmarks), dim=1)  # two even for the margin alone
    runner_up = top[:, 1] if landmarks > 1 else torch.zeros_like(top[:, 0])
    entropy = -(probability * probability.clamp_min(1e-12).log()).sum(dim=1)
    none = probability[:, landmarks:].sum(dim=1)
    columns = [top[:, 0], top[:, 0] - runner_up, entropy, logits.logsumexp(dim=1), embeddings.norm(dim=1), none]
    features = torch.stack(columns, dim=1)  # [B, 6]
    return top[:, :keep].cpu().numpy(), classes[:, :keep].cpu().numpy(), features.cpu().numpy()


def candidate_table(
    predictions: Predictions, *, member: str, queries: Sequence[str], landmarks: Sequence[str]
) -> pd.DataFrame:
    """Predictions as rows of the candidates table."""
    count = predictions.scores.shape[1]
    return pd.DataFrame(
        {
            "member": member,
            "query": np.repeat(np.asarray(queries, dtype=object), count),
            "landmark_id": np.asarray(landmarks, dtype=object)[predictions.classes.ravel()],
            "score": predictions.scores.ravel(),
            "rank": np.tile(np.arange(1, count + 1, dtype=np.int16), len(queries)),
            **{name: values.ravel() for name, values in predictions.evidence.items()},
        }
    )


def feature_table(predictions: Predictions, *, member: str, queries: Sequence[str]) -> pd.DataFrame:
    """Predictions' numbers per query as rows of the query features table."""
    frame = pd.DataFrame(predictions.features, columns=list(predictions.names))
    frame.insert(0, "query", np.asarray(queries, dtype=object))
    frame.insert(0, "member", member)
    return frame


def mean_candidates(tables: Iterable[pd.DataFrame], *, knows: pd.Series, member: str, keep: int) -> pd.DataFrame:
    """Merge the fold models' candidates for the test set: the mean over the models that know the landmark.

    A landmark whose few photos all lie in one fold is unknown to that fold's model; counting its silence as a zero
    would hold rare landmarks down. Evidence is averaged over the models that list the landmark for the query, as the
    others say nothing of it; what not every model can tell is left out.

    Args:
        tables: one candidates table per fold model.
        knows: landmark_id -> how many of the models know it.
        member: the member's name.
        keep: K.
    """
    rows = pd.concat(tables, ignore_index=True, join="inner")
    evidence = [name for name in rows.columns if name not in CANDIDATES.columns]
    rows = rows.astype(dict.fromkeys(["score", *evidence], np.float64))  # else a sum depends on the order
    mean = rows.groupby(["query", "landmark_id"], sort=True).agg({"score": "sum"} | dict.fromkeys(evidence, "mean"))
    mean = mean.reset_index()
    mean["score"] /= mean["landmark_id"].map(knows).to_numpy(np.float64)
    mean = mean.astype(dict.fromkeys(["score", *evidence], np.float32))
    mean = mean.sort_values(["query", "score", "landmark_id"], ascending=[True, False, True], ignore_index=True)
    mean["rank"] = mean.groupby("query").cumcount() + 1
    kept = mean[mean["rank"] <= keep].reset_index(drop=True)
    kept.insert(0, "member", member)
    return kept.astype({"rank": np.int16})


def mean_features(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Merge the fold models' numbers per query: their mean; those that not all models can tell are left out."""
    rows = pd.concat(tables, ignore_index=True, join="inner")
    return rows.groupby(["member", "query"], sort=True).mean().reset_index()
