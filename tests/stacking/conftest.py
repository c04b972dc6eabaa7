"""A drawn competition: correlated members, a gate, photos without a landmark, landmarks that training never saw."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from engine.core.config import StackConfig, ValidationConfig
from stacking.evaluate import cross_stack, groups_of
from stacking.features import build_rows, mark_right
from stacking.fitting import try_methods

MEMBERS = ("large", "small", "nearest")
LANDMARKS = 40
KEPT = 8  # candidates a member lists


@dataclass(frozen=True)
class Competition:
    """What the zoo would leave for the stacker."""

    candidates: pd.DataFrame
    query_features: pd.DataFrame
    class_sizes: pd.DataFrame
    queries: pd.DataFrame

    def rows(self, members=MEMBERS, per_member=5):
        return build_rows(
            self.candidates, self.query_features, self.class_sizes, self.queries, members, per_member=per_member
        )

    def tangled(self):
        """The rows with a feature that right ones have in the middle: trees see it, a line cannot."""
        rows, rng = self.rows(), np.random.default_rng(8)
        middle = mark_right(rows, self.queries) == (rng.random(len(rows)) < 0.85)
        size = np.where(middle, rng.uniform(0, 0.3, len(rows)), rng.uniform(0.3, 1, len(rows)))
        return rows.assign(**{"tangle.place": np.float32(size * rng.choice([-1, 1], len(rows)))})

    def with_evidence(self):
        """The same, had two members told more of their candidates, of which one thing both."""
        told = self.candidates.assign(cosine=np.tanh(logit(self.candidates["score"]) / 8))
        told["cosine"] = told["cosine"].mask(told["member"] == "large")
        for member in ("small", "nearest"):
            votes = np.float32(told["cosine"] > -0.5)
            told[f"votes.{member}"] = pd.Series(votes).where(told["member"] == member)
        return replace(self, candidates=told)

    def shuffled(self, seed):
        """The same tables, every one in another order."""
        names = ("candidates", "query_features", "class_sizes", "queries")
        return replace(self, **{name: getattr(self, name).sample(frac=1, random_state=seed) for name in names})


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def draw_competition(seed, *, queries=800, folds=4):
    """Draw members that see the same photo through one shared and one own error; each is best for another kind."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(300 / np.arange(1, LANDMARKS + 1), 2)
    ids = np.array([f"{i:016x}" for i in rng.choice(1 << 40, queries, replace=False)])
    names = np.array([f"{7 * i + 3:04d}" for i in range(LANDMARKS)])
    shown = rng.choice(LANDMARKS, queries, p=sizes**0.7 / np.sum(sizes**0.7))
    kind = rng.choice(["landmark", "unseen", "none"], queries, p=[0.6, 0.1, 0.3])
    side = rng.integers(16, 256, queries)

    shared = rng.gumbel(size=(queries, LANDMARKS + 1))  # [Q, L + 1], the last is none
    prior = np.append(np.log(sizes), np.log(60))
    tables, features = [], []
    for member, good in {"large": side > 128, "small": side <= 128, "nearest": np.ones(queries, bool)}.items():
        logits = 0.8 * shared + 0.7 * rng.gumbel(size=shared.shape) + 0.6 * prior
        sight = rng.gamma(3, 0.9, queries) * np.where(good, 1.6, 0.8)
        seen = kind == "landmark"
        logits[seen, shown[seen]] += sight[seen] + 1
        logits[kind == "none", -1] += sight[kind == "none"]
        scores = softmax(logits)
        best = np.argsort(-scores[:, :-1], axis=1)[:, :KEPT]
        tables.append(
            pd.DataFrame(
                {
                    "member": member,
                    "query": np.repeat(ids, KEPT),
                    "landmark_id": names[best].ravel(),
                    "score": np.take_along_axis(scores, best, axis=1).ravel().astype(np.float32),
                    "rank": np.tile(np.arange(1, KEPT + 1, dtype=np.int16), queries),
                }
            )
        )
        features.append(pd.DataFrame({"member": member, "query": ids, "p_none": scores[:, -1]}))
    gate = 1 / (1 + np.exp(-np.where(kind == "none", -1.5, 1.5) - rng.normal(0, 1.5, queries)))
    features.append(pd.DataFrame({"member": "gate", "query": ids, "p_landmark": gate}))
    truth = pd.Series(names[shown], dtype="str").mask(kind != "landmark")
    fold = rng.integers(folds, size=queries)
    return Competition(
        candidates=pd.concat(tables, ignore_index=True),
        query_features=pd.concat(features, ignore_index=True),
        class_sizes=pd.DataFrame(
            {"fold": np.repeat(np.arange(folds), LANDMARKS), "landmark_id": np.tile(names, folds)}
        ).assign(size=np.tile(sizes, folds)),
        queries=pd.DataFrame(
            {
                "id": ids,
                "fold": fold,
                "landmark_id": truth,
                "unseen": kind == "unseen",
                "width": side,
                "height": side + 10,
                "group": rng.integers(queries, size=queries) * folds
                + fold,  # one in ten shares its, never in two folds
            }
        ),
    )


@pytest.fixture(scope="session")
def competition():
    return draw_competition(0)


@pytest.fixture(scope="session")
def rows(competition):
    return competition.rows()


@pytest.fixture(scope="session")
def evident(competition):
    """The competition of members that tell evidence of their candidates, where `competition` has scores alone."""
    return competition.with_evidence()


@pytest.fixture(scope="session")
def stack_config():
    return StackConfig(trees=60, learning_rate=0.1, leaves=7, parts=2)  # a second, not ten


@pytest.fixture(scope="session")
def quick_config(stack_config):
    """For what does not depend on how good the trees are."""
    return stack_config.model_copy(update={"trees": 10})


@pytest.fixture(scope="session")
def right(competition, rows):
    return mark_right(rows, competition.queries)


@pytest.fixture(scope="session")
def groups(competition, rows):
    return groups_of(rows, competition.queries)


@pytest.fixture(scope="session")
def tangled(competition):
    return competition.tangled()


@pytest.fixture(scope="session")
def trials(tangled, right, groups, stack_config):
    """Every method, the simpler first."""
    return try_methods(tangled, right, groups, stack_config, seed=0, threads=1)


@pytest.fixture(scope="session")
def stacked(competition, rows, stack_config):
    return cross_stack(rows, competition.queries, stack_config, seed=0, threads=1, advance=lambda *_: None)


@pytest.fixture(scope="session")
def validation_config():
    return ValidationConfig(bootstrap=200)


@pytest.fixture(scope="session")
def comparing_rows(rows):
    """The rows, had 'nearest' compared photos: a softmax of 25 times cosines, and how near the query is to nothing."""
    best = (rows["nearest.score"] - rows["nearest.below_best"]).clip(1e-6)
    none_cosine, nearest_none_cosine = 0.3 + 0.3 * rows["query.nearest.p_none"], np.float32(0.35)
    return rows.assign(
        **{
            "query.nearest.none_cosine": none_cosine,
            "query.nearest.nearest_none_cosine": nearest_none_cosine,
            "query.nearest.trust": 0.8 + np.log(best) / 25 - nearest_none_cosine - none_cosine,
        }
    )
