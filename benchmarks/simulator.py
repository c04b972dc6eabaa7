"""A drawn competition of any size: what members and a gate would leave for the stacker, in a few seconds.

Real photos answer slowly, and only a few thousand questions. Here 20,000 queries are drawn, and 20,000 held-out ones of
the same kind, so that a way to stack is scored on queries that had no part in choosing it, and again on other seeds.
The world below is made up: trust the order that comes out, and not the size of its steps.

Landmarks are as frequent as Zipf has it. Two in five queries show one of them; one in ten shows a landmark that
training never saw, which only the gate tells from nothing; the others show nothing. A member's logit for a landmark is
the sum of

- what the photo shows of it, as far as the member can see that at the photo's size;
- likewise for a decoy: a landmark that the photo resembles in every member's eyes, more so where it shows nothing;
- an error that all members share, and one of its own;
- the landmark's frequency, for those members whose head was trained on it.

The last member is a search for neighbours: it has nothing from the frequency, sees less of landmarks with few photos,
and tells how near a query and its neighbours lie to photos of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, softmax

from stacking.features import GATE, build_rows

Values = NDArray[np.floating[Any]]
Kinds = NDArray[np.str_]  # [Q] "landmark", "unseen" or "none"

# The numbers are chosen so that on held-out queries the best member, the members' mean, the mean times the gate and
# LightGBM reach a GAP of about .62, .69, .72 and .76, and that a perfect ranking would add more than perfect labels.
LISTED: Final = 5  # candidates of each member; more of them moved GAP by less than .0001
LARGEST_CLASS: Final = 600  # training photos of the most frequent landmark
SHARED_NOISE = np.float32(1.15)  # deviation of the error that all members share, in logits
GATE_LOGIT: Final = 0.75  # of the gate's middle photo with a landmark; its deviation is 1.3


@dataclass(frozen=True)
class Member:
    """How a member sees.

    Attributes:
        skill: logits for each unit of what the photo shows.
        side: the photo's shorter side in pixels from which on it sees all it can.
        frequency: logits for each unit of the logarithm of a landmark's training photos.
        noise: deviation of its own error, in logits.
        counts: whether it sees less of a landmark that has fewer than 20 photos.
    """

    skill: float
    side: int
    frequency: float
    noise: float
    counts: bool = False


NEIGHBOURS: Final = "neighbours"
MEMBERS: Final[Mapping[str, Member]] = {
    "large": Member(skill=1.65, side=224, frequency=0.25, noise=0.75),
    "small": Member(skill=1.25, side=96, frequency=0.25, noise=0.85),
    "frozen": Member(skill=1.3, side=128, frequency=0.35, noise=0.85),
    NEIGHBOURS: Member(skill=1.55, side=160, frequency=0.0, noise=0.75, counts=True),
}


@dataclass(frozen=True, eq=False)
class Competition:
    """The tables that the stacker reads, see `stacking.features.build_rows`.

    Attributes:
        candidates: of all members.
        query_features: of the neighbours' member and the gate, and every member's entropy.
        class_sizes: fold, landmark_id, size.
        queries: id, fold, landmark_id (null: none that training saw), unseen, width, height, group.
    """

    candidates: pd.DataFrame
    query_features: pd.DataFrame
    class_sizes: pd.DataFrame
    queries: pd.DataFrame

    def rows(self, members: Sequence[str] = tuple(MEMBERS), *, per_member: int = 3) -> pd.DataFrame:
        """The stacker's rows, made by the engine's own code."""
        return build_rows(
            self.candidates, self.query_features, self.class_sizes, self.queries, members, per_member=per_member
        )


@dataclass(frozen=True, eq=False)
class Photos:
    """What is true of the queries.

    Attributes:
        kind: [Q].
        shown: [Q] the landmark of a query of kind "landmark"; else of no meaning.
        decoy: [Q] the landmark that it resembles.
        clarity: [Q] how much it shows of its landmark, 6 on average; 0 for the other kinds.
        lure: [Q] >= 0, how much it resembles its decoy.
        side: [Q] shorter side in pixels.
    """

    kind: Kinds
    shown: NDArray[np.intp]
    decoy: NDArray[np.intp]
    clarity: Values
    lure: Values
    side: NDArray[np.int64]


def draw_pair(seed: int, *, queries: int = 20_000) -> tuple[Competition, Competition]:
    """Out-of-fold queries to learn from, and held-out ones of the same kind to be scored on."""
    ours, theirs = np.random.SeedSequence(seed).spawn(2)
    return draw(ours, queries=queries), draw(theirs, queries=queries, folds=0)


def draw(
    seed: int | np.random.SeedSequence, *, queries: int = 20_000, landmarks: int = 500, folds: int = 4
) -> Competition:
    """Draw a competition.

    Args:
        seed: of everything.
        queries: Q.
        landmarks: L.
        folds: that the queries are spread over; 0 for a test set, whose fold is -1.
    """
    rng = np.random.default_rng(seed)
    sizes = np.maximum(LARGEST_CLASS / np.arange(1, landmarks + 1), 2).astype(np.int64)
    ids = np.array([f"{number:016x}" for number in rng.choice(1 << 40, queries, replace=False)])
    names = np.array([f"{7 * number + 3:04d}" for number in range(landmarks)])
    photos = draw_photos(rng, sizes, queries)
    shared = SHARED_NOISE * rng.standard_normal((queries, landmarks), dtype=np.float32)

    tables, features = [], []
    for name, member in MEMBERS.items():
        scores = softmax(_draw_logits(rng, member, photos, shared, sizes), axis=1)  # [Q, L]
        tables.append(_list_best(name, scores, ids, names))
        features.append(draw_features(rng, name, scores, ids, photos))
    return assemble(rng, photos, sizes, ids, names, tables, features, folds=folds)


def draw_features(
    rng: np.random.Generator, member: str, scores: Values, ids: Values | pd.Index[str], photos: Photos
) -> pd.DataFrame:
    """`engine.core.tables.QUERY_FEATURES` of a member whose softmax over what it may see is [Q, any]."""
    entropy = -np.sum(scores * np.log(np.maximum(scores, 1e-12)), axis=1)
    told = draw_cosines(rng, photos, scores.max(axis=1)) if member == NEIGHBOURS else {}
    return pd.DataFrame({"member": member, "query": ids, "entropy": entropy, **told})


def assemble(
    rng: np.random.Generator,
    photos: Photos,
    sizes: NDArray[np.int64],
    ids: Values | pd.Index[str],
    names: Values | pd.Index[str],
    tables: Sequence[pd.DataFrame],
    features: Sequence[pd.DataFrame],
    *,
    folds: int,
) -> Competition:
    """All that was drawn of Q queries `ids` and L landmarks `names`, with a gate, spread over some folds or none."""
    gate = pd.DataFrame({"member": GATE, "query": ids, "p_landmark": draw_gate(rng, photos)})
    known = range(folds) if folds else [-1]
    return Competition(
        candidates=pd.concat(tables, ignore_index=True),
        query_features=pd.concat([*features, gate], ignore_index=True),
        class_sizes=pd.concat([pd.DataFrame({"fold": f, "landmark_id": names, "size": sizes}) for f in known]),
        queries=pd.DataFrame(
            {
                "id": ids,
                "fold": rng.integers(folds, size=len(ids)) if folds else -1,
                "landmark_id": pd.Series(names[photos.shown], dtype="str").mask(photos.kind != "landmark"),
                "unseen": photos.kind == "unseen",
                "width": photos.side,
                "height": photos.side + rng.integers(0, 100, len(ids)),
                "group": np.arange(len(ids)),
            }
        ),
    )


def draw_photos(rng: np.random.Generator, sizes: NDArray[np.int64], queries: int) -> Photos:
    """Draw Q queries' photos; `sizes` [L] says how many training photos each landmark has."""
    frequency = sizes / sizes.sum()
    kind = rng.choice(["landmark", "unseen", "none"], queries, p=[0.4, 0.1, 0.5])
    return Photos(
        kind=kind,
        shown=rng.choice(len(sizes), queries, p=frequency),
        decoy=rng.choice(len(sizes), queries, p=frequency),
        clarity=rng.gamma(6.0, kind == "landmark"),
        lure=rng.gamma(3.0, np.where(kind == "landmark", 0.45, 0.8)),
        side=rng.integers(32, 320, queries),
    )


def _draw_logits(
    rng: np.random.Generator, member: Member, photos: Photos, shared: Values, sizes: NDArray[np.int64]
) -> Values:
    """[Q, L] of one member; `shared` is the error [Q, L] that all members make."""
    logits = shared + member.noise * rng.standard_normal(shared.shape, dtype=np.float32)
    logits += (member.frequency * np.log(sizes)).astype(np.float32)
    rows = np.arange(len(logits))
    sight = member.skill * np.minimum(photos.side / member.side, 1)  # [Q]
    for landmark, likeness in ((photos.shown, photos.clarity), (photos.decoy, photos.lure)):
        familiar = np.minimum(np.log(sizes) / 3, 1)[landmark] if member.counts else 1.0
        logits[rows, landmark] += sight * likeness * familiar * rng.gamma(12.0, 1 / 12, len(rows))
    return logits


def _list_best(member: str, scores: Values, ids: Values, names: Values) -> pd.DataFrame:
    """`engine.core.tables.CANDIDATES`: the best of [Q, L]."""
    best = np.argpartition(-scores, LISTED, axis=1)[:, :LISTED]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1), axis=1)
    return pd.DataFrame(
        {
            "member": member,
            "query": np.repeat(ids, LISTED),
            "landmark_id": names[best].ravel(),
            "score": np.take_along_axis(scores, best, axis=1).ravel().astype(np.float32),
            "rank": np.tile(np.arange(1, LISTED + 1, dtype=np.int16), len(ids)),
        }
    )


def draw_cosines(rng: np.random.Generator, photos: Photos, highest: Values) -> dict[str, Values]:
    """[Q] each, as `zoo.photo_heads` tells them: nearness to photos of nothing, and the highest score less that."""
    nothing = photos.kind == "none"
    query = 0.35 + 0.05 * nothing + 0.1 * rng.standard_normal(len(nothing))
    neighbours = 0.35 + 0.05 * nothing + 0.1 * rng.standard_normal(len(nothing))
    return {
        "none_cosine": query,
        "nearest_none_cosine": neighbours,
        "trust": 0.4 + 0.5 * highest - neighbours - query,
    }


def draw_gate(rng: np.random.Generator, photos: Photos) -> Values:
    """[Q] the gate's probability of any landmark, whether training saw it or not."""
    towards = np.where(photos.kind == "none", -GATE_LOGIT, GATE_LOGIT)
    probability: Values = expit(towards + 1.3 * rng.standard_normal(len(towards)))
    return probability
