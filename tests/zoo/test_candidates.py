"""The best K of each query are those a dense table would show, and the table depends on no order."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.core.tables import CANDIDATES, QUERY_FEATURES, read_table, write_table
from zoo.candidates import (
    BATCH,
    FEATURES,
    Predictions,
    by_mean_embedding,
    candidate_table,
    feature_table,
    mean_candidates,
    mean_features,
    predict,
    summarise,
)
from zoo.device import make_accelerator
from zoo.heads import Head
from zoo.network import Network
from zoo.photo_heads import NeighbourHead
from zoo.recipe import HeadConfig
from zoo.sources import EmbeddingSource

LANDMARKS = ["0012", "12e1", "a", "b", "c", "nan"]
logit_rows = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(2, 8)), elements=st.floats(-30, 30, width=32))


def _softmax(logits):
    power = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


def _summarise(logits, *, landmarks, keep, embeddings=None):
    given_ = torch.ones(len(logits), 4) if embeddings is None else torch.from_numpy(embeddings)
    return summarise(torch.from_numpy(logits), given_, landmarks=landmarks, keep=keep)


# ---- one batch


@settings(deadline=None, max_examples=60)
@given(logits=logit_rows, keep=st.integers(1, 10), has_none=st.booleans())
def test_the_best_k_are_those_of_the_dense_table(logits, keep, has_none):
    landmarks = logits.shape[1] - has_none
    scores, classes, features = _summarise(logits, landmarks=landmarks, keep=keep)
    dense = _softmax(logits)
    best = -np.sort(-dense[:, :landmarks], axis=1)
    assert scores.shape == classes.shape == (len(logits), min(keep, landmarks))
    np.testing.assert_allclose(scores, best[:, :keep], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(np.take_along_axis(dense, classes, axis=1), scores, rtol=1e-4, atol=1e-7)
    assert classes.max() < landmarks  # 'none of them' is nobody's candidate
    assert all(len(set(row)) == len(row) for row in classes)

    named = dict(zip(FEATURES, features.T, strict=True))
    runner_up = best[:, 1] if landmarks > 1 else 0
    np.testing.assert_allclose(named["max"], best[:, 0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(named["margin"], best[:, 0] - runner_up, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(named["p_none"], dense[:, landmarks:].sum(axis=1), rtol=1e-4, atol=1e-7)
    entropy = -(dense * np.log(np.maximum(dense, 1e-12))).sum(axis=1)
    np.testing.assert_allclose(named["entropy"], entropy, rtol=1e-3, atol=1e-5)


def test_features_of_a_query_are_those_computed_by_hand():
    logits = np.log(np.array([[0.5, 0.2, 0.3]], np.float32)) + 2
    embeddings = np.array([[3, 4]], np.float32)
    _, _, features = _summarise(logits, landmarks=2, keep=2, embeddings=embeddings)
    by_hand = [0.5, 0.3, -(0.5 * np.log(0.5) + 0.2 * np.log(0.2) + 0.3 * np.log(0.3)), 2, 5, 0.3]
    np.testing.assert_allclose(features, [by_hand], rtol=1e-5)


def test_features_do_not_depend_on_how_many_candidates_are_kept():
    logits = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    one, many = (_summarise(logits, landmarks=5, keep=keep)[2] for keep in (1, 5))
    assert np.array_equal(one, many)


def test_very_sure_logits_stay_finite():
    scores, _, features = _summarise(np.array([[1e4, -1e4, 0]], np.float32), landmarks=2, keep=2)
    assert np.isfinite(features).all()
    assert scores.tolist() == [[1, 0]]


# ---- many batches and views


@pytest.fixture(scope="module")
def predictions():
    """All of two batches and a bit, by a head over five landmarks and 'none of them'; and the dense table."""
    embeddings = np.random.default_rng(0).normal(size=(2 * BATCH + 3, 2, 7)).astype(np.float16)
    torch.manual_seed(0)
    model = Network(torch.nn.Identity(), Head(7, 6, HeadConfig())).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    rows = np.arange(len(embeddings))[::-1].copy()
    source = EmbeddingSource(embeddings, 0, torch.device("cpu"))
    accelerator = make_accelerator("cpu", "fp32", 1)
    found = predict(model, source, rows, landmarks=5, keep=3, accelerator=accelerator, mixed=False)
    weight, bias = (tensor.detach().numpy() for tensor in (model.head.linear.weight, model.head.linear.bias))
    dense = _softmax((embeddings[rows].astype(np.float32) @ weight.T + bias).mean(axis=1))
    return found, dense


def test_views_are_averaged_on_logits_and_rows_keep_their_order(predictions):
    found, dense = predictions
    np.testing.assert_allclose(found.scores, -np.sort(-dense[:, :5], axis=1)[:, :3], rtol=1e-4)
    assert np.array_equal(found.classes, np.argsort(-dense[:, :5], axis=1)[:, :3])
    assert found.features.shape == (len(dense), len(FEATURES))


def test_views_may_be_averaged_on_embeddings():
    torch.manual_seed(0)
    model = Network(torch.nn.Identity(), Head(7, 6, HeadConfig(norm="l2"))).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    both = 2 * np.random.default_rng(0).integers(-8, 9, size=(9, 2, 7)).astype(np.float16)  # their mean is exact
    rows, common = np.arange(9), {"landmarks": 5, "keep": 3, "accelerator": make_accelerator("cpu", "fp32", 1)}

    def ask(embeddings, refine=None):
        source = EmbeddingSource(embeddings.astype(np.float16), 0, torch.device("cpu"))
        return predict(model, source, rows, mixed=False, refine=refine, **common).scores

    of_mean = ask(both.mean(axis=1, keepdims=True))
    np.testing.assert_array_equal(ask(both, by_mean_embedding(model.head)), of_mean)
    assert not np.allclose(ask(both), of_mean)


def test_tables_hold_each_query_with_its_candidates_in_order(predictions, tmp_path):
    found, dense = predictions
    queries = [f"{number:016d}" for number in range(len(dense))]
    table = candidate_table(found, member="m", queries=queries, landmarks=LANDMARKS[:5])
    features = feature_table(found, member="m", queries=queries)
    write_table(tmp_path / "c.parquet", table, CANDIDATES)
    write_table(tmp_path / "q.parquet", features, QUERY_FEATURES)
    table = read_table(tmp_path / "c.parquet", CANDIDATES)
    assert table["query"].tolist() == [query for query in queries for _ in range(3)]
    assert table["rank"].tolist() == [1, 2, 3] * len(queries)
    assert [LANDMARKS.index(name) for name in table["landmark_id"][:3]] == found.classes[0].tolist()
    assert np.array_equal(table["score"], found.scores.ravel())
    features = read_table(tmp_path / "q.parquet", QUERY_FEATURES)
    assert features.columns.tolist() == ["member", "query", *FEATURES]
    assert features["query"].tolist() == queries


# ---- evidence


def _find(embeddings, targets, *, refine=None):
    """The best two of four landmarks for every photo but the first eight, which a neighbours head holds."""
    head = NeighbourHead(7, 4, 8, HeadConfig())
    head.fill(torch.from_numpy(embeddings[:8].astype(np.float32).mean(axis=1)), torch.tensor(targets))
    source, rows = EmbeddingSource(embeddings, 0, torch.device("cpu")), np.arange(8, len(embeddings))
    accelerator = make_accelerator("cpu", "fp32", 1)
    found = predict(
        Network(torch.nn.Identity(), head).eval(), source, rows,
        landmarks=4, keep=2, accelerator=accelerator, mixed=False, refine=refine,
    )  # fmt: skip
    return head, rows, found


@pytest.mark.parametrize("views", [1, 2])
def test_the_evidence_of_every_candidate_is_what_the_head_tells_of_it(views, tmp_path):
    embeddings = np.random.default_rng(0).normal(1, 1, (2 * BATCH + 11, views, 7)).astype(np.float16)
    head, rows, found = _find(embeddings, [0, 1, 1, 2, 2, 2, 3, 3])
    query = torch.from_numpy(embeddings[rows].astype(np.float32).mean(axis=1))
    expected = head.evidence(head.compare(query), torch.from_numpy(found.classes))
    assert list(found.evidence) == list(expected) == ["cosine", "mean_cosine", "votes"]
    table = candidate_table(found, member="m", queries=[str(row) for row in rows], landmarks=list("abcd"))
    write_table(tmp_path / "c.parquet", table, CANDIDATES)
    table = read_table(tmp_path / "c.parquet", CANDIDATES)
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values.ravel(), rtol=1e-4, atol=1e-5)


def test_a_head_without_evidence_adds_no_column(predictions):
    found, dense = predictions
    assert found.evidence == {}
    table = candidate_table(found, member="m", queries=["q"] * len(dense), landmarks=LANDMARKS[:5])
    assert list(table.columns) == list(CANDIDATES.columns)


def test_what_is_refined_has_other_candidates_and_their_evidence():
    embeddings = np.random.default_rng(0).normal(1, 1, (BATCH + 20, 1, 7)).astype(np.float16)

    def refine(queries, embedding, compared, logits):
        assert len(queries) == len(embedding) == len(compared.vectors) == len(logits)
        row = torch.from_numpy(queries)[:, None]
        return -logits, lambda classes: {"code": (10 * row + classes).float()}

    targets = [0, 1, 1, 2, 2, 2, 3, 3]
    (_, rows, plain), (_, _, refined) = _find(embeddings, targets), _find(embeddings, targets, refine=refine)
    assert all(not set(one) & set(two) for one, two in zip(plain.classes, refined.classes, strict=True))
    assert list(refined.evidence) == ["code"]
    np.testing.assert_array_equal(refined.evidence["code"], 10 * rows[:, None] + refined.classes)


# ---- the mean over fold models


def _table(rows, member="m"):
    frame = pd.DataFrame(rows, columns=["query", "landmark_id", "score"]).astype({"score": np.float32})
    frame.insert(0, "member", member)
    frame["rank"] = (frame.groupby("query")["score"].rank(ascending=False, method="first")).astype(np.int16)
    return frame


def test_the_mean_is_over_the_models_that_know_the_landmark():
    folds = [
        _table([("q", "a", 0.6), ("q", "b", 0.3)]),
        _table([("q", "a", 0.2), ("q", "rare", 0.5)]),
        _table([("q", "a", 0.1), ("q", "b", 0.6)]),
    ]
    knows = pd.Series({"a": 3, "b": 3, "rare": 1, "never seen here": 2})
    mean = mean_candidates(folds, knows=knows, member="m", keep=20)
    assert mean["landmark_id"].tolist() == ["rare", "a", "b"]  # equal scores by name
    assert dict(zip(mean["landmark_id"], mean["score"], strict=True)) == pytest.approx(
        {"rare": 0.5, "a": 0.3, "b": 0.3}
    )
    assert mean["rank"].tolist() == [1, 2, 3]


def test_the_mean_keeps_the_best_k_of_each_query():
    rows = [(query, landmark, score / 10) for query in "pq" for score, landmark in enumerate("abcdef")]
    mean = mean_candidates([_table(rows)], knows=pd.Series(1, index=list("abcdef")), member="m", keep=2)
    assert mean[["query", "landmark_id", "rank"]].to_numpy().tolist() == [
        ["p", "f", 1], ["p", "e", 2], ["q", "f", 1], ["q", "e", 2],
    ]  # fmt: skip


def test_evidence_is_averaged_over_the_models_that_list_the_landmark(tmp_path):
    folds = [
        _table([("q", "a", 0.6), ("q", "b", 0.3)]).assign(cosine=[0.5, -0.25]),
        _table([("q", "a", 0.2), ("q", "c", 0.5), ("p", "a", 1.0)]).assign(cosine=[0.25, 0.125, 1.0]),
        _table([("q", "c", 0.1), ("q", "b", 0.6)]).assign(cosine=[0.625, 0.75]),
    ]
    mean = mean_candidates(folds, knows=pd.Series(3, index=list("abc")), member="m", keep=20)
    write_table(tmp_path / "c.parquet", mean, CANDIDATES)
    cosine = read_table(tmp_path / "c.parquet", CANDIDATES).set_index(["query", "landmark_id"])["cosine"]
    assert cosine.to_dict() == {("p", "a"): 1.0, ("q", "a"): 0.375, ("q", "b"): 0.25, ("q", "c"): 0.375}


def test_evidence_that_not_every_model_can_tell_is_left_out_of_the_mean():
    able, unable = _table([("q", "a", 0.5)]).assign(votes=0.5, cosine=0.25), _table([("q", "a", 0.5)]).assign(votes=1.0)
    mean = mean_candidates([able, unable], knows=pd.Series({"a": 2}), member="m", keep=1)
    assert set(mean.columns) == {*CANDIDATES.columns, "votes"}
    assert mean["votes"].tolist() == [0.75]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_shuffled_tables_give_the_same_mean(seed):
    chance = np.random.default_rng(seed)
    folds = []
    for _ in range(5):
        scores = chance.random((4, 6), dtype=np.float32) ** 8  # of very different sizes
        scores[:, 3] = scores[:, 2]  # and ties
        folds.append(
            _table([(q, name, scores[i, j]) for i, q in enumerate("pqrs") for j, name in enumerate(LANDMARKS)]).assign(
                cosine=scores.ravel() - np.float32(0.3)
            )
        )
    knows = pd.Series(5, index=LANDMARKS)
    expected = mean_candidates(folds, knows=knows, member="m", keep=4)
    shuffled = [folds[i].sample(frac=1, random_state=int(chance.integers(2**31))) for i in chance.permutation(5)]
    pd.testing.assert_frame_equal(
        mean_candidates(shuffled, knows=knows, member="m", keep=4), expected, check_exact=True
    )


def test_features_are_averaged_over_the_models(tmp_path):
    predictions = [
        Predictions(np.ones((2, 1), np.float32), np.zeros((2, 1), np.int64), np.full((2, 6), value, np.float32))
        for value in (1.0, 2.0, 6.0)
    ]
    mean = mean_features(feature_table(each, member="m", queries=["q", "p"]) for each in predictions)
    write_table(tmp_path / "q.parquet", mean, QUERY_FEATURES)
    assert mean["query"].tolist() == ["p", "q"]
    assert (mean[list(FEATURES)] == 3).all().all()


def test_a_feature_that_not_every_model_can_tell_is_left_out_of_the_mean():
    scores, classes = np.ones((1, 1), np.float32), np.zeros((1, 1), np.int64)
    able = Predictions(scores, classes, np.ones((1, 7), np.float32), (*FEATURES, "trust"))
    unable = Predictions(scores, classes, np.ones((1, 6), np.float32))
    mean = mean_features(feature_table(each, member="m", queries=["q"]) for each in (able, unable))
    assert mean.columns.tolist() == ["member", "query", *FEATURES]
