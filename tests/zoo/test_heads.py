"""Every head gives logits and a loss as its definition says, computed here by hand, slowly, or by another library."""

import itertools

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pytorch_metric_learning import distances, losses, miners, reducers
from scipy.linalg import hadamard
from torch.nn import functional

from engine.core.errors import ConfigError
from zoo.heads import ArcFaceHead, Compared, HadamardHead, Head, class_margins, walsh_hadamard, widen_angle
from zoo.network import build_head
from zoo.photo_heads import NeighbourHead, PrototypeHead, triplet_loss
from zoo.recipe import HeadConfig

KINDS = ("linear", "hadamard", "arcface", "neighbours", "prototypes")
LEARNED = KINDS[:3]
COUNTS = torch.tensor([5, 1, 3, 9])
COMPARED = {"rtol": 1e-4, "atol": 1e-5}


def _normal(*shape, seed=0, mean=0.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _around(photos, query):
    """Directions of photos and queries as seen from the photos' mean direction."""
    centre = _unit(photos).mean(axis=0)
    return _unit(_unit(photos) - centre), _unit(_unit(query) - centre)


def _filled(kind, width=6, **settings):
    head = build_head(HeadConfig(kind=kind, **settings), width, COUNTS)
    if kind not in LEARNED:
        head.fill(_normal(int(COUNTS.sum()), width, mean=1), torch.arange(4).repeat_interleave(COUNTS))
    return head


# ---- what all heads share


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_gives_float_logits_and_a_loss_with_a_gradient(kind):
    torch.manual_seed(0)
    head, embedding = _filled(kind), _normal(8, 6, mean=1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(embedding.bfloat16())
        loss = head.loss(embedding, torch.arange(8) % 4, 0.1)
    assert logits.shape == (8, 4)
    assert logits.dtype == loss.dtype == torch.float32
    loss.backward()
    assert 0 < embedding.grad.abs().max() < 100
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_a_head_is_enough_to_predict(kind):
    torch.manual_seed(0)
    head, query = _filled(kind), _normal(5, 6, seed=1)
    again = build_head(head.config, 6, COUNTS)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval()(query), head.eval()(query))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_answers_from_what_it_compares(kind):
    torch.manual_seed(0)
    head, query = _filled(kind).eval(), _normal(5, 6, seed=1)
    assert torch.equal(head.answer(head.compare(query)), head(query))


@pytest.mark.parametrize("kind", LEARNED)
def test_a_learned_head_has_no_evidence_of_candidates(kind):
    head = _filled(kind)
    assert head.evidence(head.compare(_normal(2, 6)), torch.tensor([[0, 1], [2, 0]])) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_head(kind):
    heads = []
    for _ in range(2):
        torch.manual_seed(3)
        heads.append(build_head(HeadConfig(kind=kind), 6, COUNTS).state_dict())
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0] | heads[1])


@pytest.mark.parametrize("kind", ["linear", "hadamard"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_smoothed_cross_entropy(kind, smoothing):
    head, embedding, targets = _filled(kind), _normal(6, 6), torch.tensor([0, 1, 2, 3, 0, 1])
    log_odds = head(embedding).log_softmax(dim=1)
    truth = functional.one_hot(targets, 4) * (1 - smoothing) + smoothing / 4
    torch.testing.assert_close(head.loss(embedding, targets, smoothing), -(truth * log_odds).sum(dim=1).mean())


@pytest.mark.parametrize("kind", LEARNED)
def test_dropout_works_in_training_only(kind):
    torch.manual_seed(0)
    head, x = build_head(HeadConfig(kind=kind, dropout=0.5), 64, COUNTS), torch.ones(1, 64)
    assert not torch.equal(head.train()(x), head.train()(x))
    assert torch.equal(head.eval()(x), head.eval()(x))


@pytest.mark.parametrize("kind", ["hadamard", "arcface", "neighbours", "prototypes"])
def test_the_length_of_an_embedding_does_not_matter_to_directions(kind):
    head, query = _filled(kind), _normal(5, 6, seed=1)
    torch.testing.assert_close(head(7 * query), head(query), **COMPARED)


@pytest.mark.parametrize("kind", KINDS)
def test_an_all_zero_embedding_has_finite_logits_and_gradients(kind):
    head, embedding = _filled(kind, cosine=True), torch.zeros(2, 6, requires_grad=True)
    (head(embedding).sum() + head.loss(embedding, torch.tensor([1, 1]), 0.1)).backward()
    assert torch.isfinite(embedding.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("kind", LEARNED)
def test_a_learned_head_learns(kind):
    torch.manual_seed(0)
    layer, head = torch.nn.Linear(6, 32), build_head(HeadConfig(kind=kind), 32, COUNTS)
    x, targets = _normal(40, 6), torch.arange(40) % 4
    x[torch.arange(40), targets] += 4
    optimizer = torch.optim.AdamW([*layer.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for _ in range(60):
        loss = head.loss(layer(x), targets, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert (head(layer(x)).argmax(dim=1) == targets).float().mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_built_by_its_kind(kind):
    head = build_head(HeadConfig(kind=kind), 6, COUNTS, none_class=3)
    names = {
        "linear": Head,
        "hadamard": HadamardHead,
        "arcface": ArcFaceHead,
        "neighbours": NeighbourHead,
        "prototypes": PrototypeHead,
    }
    assert type(head) is names[kind]
    assert head(_normal(2, 6)).shape == (2, 4)
    if kind == "neighbours":
        assert len(head.index) == COUNTS.sum()


@pytest.mark.parametrize(
    ("kind", "width", "parameters"),
    [
        ("linear", 2048, 30_634_599),  # the slides'
        ("linear", 32_768, 489_929_319),
        ("hadamard", 2048, 14_952),
        ("hadamard", 32_768, 14_952),
        ("arcface", 512, 3 * 512 * 14_951),
        ("neighbours", 2048, 0),
        ("prototypes", 2048, 0),
    ],
)
def test_parameters_are_counted_without_memory_for_them(kind, width, parameters):
    counts = torch.full((14_951,), 80)
    with torch.device("meta"):
        head = build_head(HeadConfig(kind=kind), width, counts)
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


# ---- linear


@pytest.mark.parametrize("norm", ["none", "batch", "l2"])
@pytest.mark.parametrize("cosine", [False, True])
def test_linear_logits_are_those_computed_by_hand(norm, cosine):
    torch.manual_seed(0)
    chance = np.random.default_rng(0)
    head = Head(6, 4, HeadConfig(norm=norm, cosine=cosine, scale=10)).eval()
    x = chance.normal(2, 3, (5, 6))
    if norm == "batch":
        mean, var = chance.normal(size=6), chance.uniform(0.5, 2, 6)
        head.norm.running_mean.copy_(torch.from_numpy(mean))
        head.norm.running_var.copy_(torch.from_numpy(var))
    logits = head(torch.from_numpy(x).float()).detach().numpy()

    if norm == "batch":
        x = (x - mean) / np.sqrt(var + 1e-5)
    if norm == "l2":
        x = _unit(x) * np.sqrt(6)
    weight = head.linear.weight.detach().numpy()
    if cosine:
        by_hand = 10 * _unit(x) @ _unit(weight).T
        assert np.abs(by_hand).max() <= 10
    else:
        by_hand = x @ weight.T + head.linear.bias.detach().numpy()
    np.testing.assert_allclose(logits, by_hand, **COMPARED)


# ---- Hadamard


@pytest.mark.parametrize("order", [1, 2, 8, 32, 64, 1024, 2048])  # one pass, a whole pass, one and a part, two, three
def test_the_transform_is_the_product_with_scipys_matrix(order):
    x = _normal(3, 2, order).double()
    expected = x.numpy() @ hadamard(order)
    np.testing.assert_allclose(walsh_hadamard(x).numpy(), expected, rtol=1e-10, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(bits=st.integers(0, 9), seed=st.integers(0, 2**16))
def test_a_second_transform_gives_n_times_the_first_input(bits, seed):
    x = _normal(2, 2**bits, seed=seed)
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(x)), 2**bits * x, rtol=1e-3, atol=1e-3)


def test_the_gradient_of_the_transform_is_right():
    assert torch.autograd.gradcheck(walsh_hadamard, _normal(2, 64).double().requires_grad_())


@pytest.mark.parametrize("order", [3, 96])
def test_an_order_that_is_no_power_of_two_is_refused(order):
    with pytest.raises(ValueError, match=f"{order} is no power of two"):
        walsh_hadamard(torch.ones(order))


@pytest.mark.parametrize(("width", "classes", "order"), [(6, 4, 8), (16, 100, 128), (64, 64, 64), (40, 33, 64)])
def test_hadamard_logits_are_a_part_of_scipys_matrix(width, classes, order):
    head, x = HadamardHead(width, classes, HeadConfig(scale=10)), _normal(5, width)
    with torch.no_grad():
        head.bias.copy_(_normal(classes, seed=1))
    part = hadamard(order)[head.rows.numpy()][:, head.columns.numpy()] / np.sqrt(width)  # [C, D]
    np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1)
    by_hand = 10 * _unit(x.numpy()) @ part.T + head.bias.detach().numpy()
    np.testing.assert_allclose(head(x).detach().numpy(), by_hand, **COMPARED)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 80), classes=st.integers(1, 300))
def test_no_two_classes_share_their_logits(width, classes):
    if width < (max(width, classes) - 1).bit_length():
        with pytest.raises(ConfigError, match=f"{width} cannot tell {classes} classes apart"):
            HadamardHead(width, classes, HeadConfig())
        return
    head = HadamardHead(width, classes, HeadConfig())
    answers = head(torch.eye(width)).T  # [C, D]
    assert len(torch.unique(answers.detach().sign(), dim=0)) == classes
    assert len(set(head.columns.tolist())) == width


def test_the_contiguous_corner_would_share_them():
    assert len(np.unique(hadamard(128)[:100, :16], axis=0)) == 16  # which is why columns are drawn


def test_the_constant_row_is_a_class_only_when_all_rows_are():
    assert 0 not in HadamardHead(64, 63, HeadConfig()).rows
    assert 0 in HadamardHead(64, 64, HeadConfig()).rows


def test_hadamard_learns_a_scale_and_a_bias_per_class_only():
    head = HadamardHead(2048, 14_951, HeadConfig(kind="hadamard"))
    assert sum(parameter.numel() for parameter in head.parameters()) == 14_952
    assert head.order == 16_384
    assert sum(tensor.numel() for tensor in head.state_dict().values()) == 2 * 14_951 + 2048 + 1  # and no matrix
    assert head.scale.item() == 16


def test_hadamard_logits_lie_within_their_scale():
    head = HadamardHead(32, 50, HeadConfig(scale=12))
    row = hadamard(head.order)[head.rows[7].item(), head.columns.numpy()]
    logits = head(torch.from_numpy(row).float()[None]).detach().numpy()
    assert logits[0, 7] == logits.max() == pytest.approx(12, rel=1e-5)
    assert logits.min() >= -12


# ---- ArcFace


def test_margins_fall_with_the_class_size_to_the_power_of_a_quarter():
    counts = torch.tensor([1, 4, 16, 100, 2000])
    margins = class_margins(counts, 0.05, 0.5).numpy()
    share = counts.numpy() ** -0.25
    assert margins[0] == pytest.approx(0.5)
    assert margins[-1] == pytest.approx(0.05)
    slope = (margins - 0.05) / (share - share[-1] + 1e-12)
    np.testing.assert_allclose(slope[:-1], slope[0], rtol=1e-5)


@pytest.mark.parametrize("counts", [[7], [3, 3, 3], [0, 1, 1]])
def test_classes_of_one_size_share_the_margin_in_the_middle(counts):
    torch.testing.assert_close(class_margins(torch.tensor(counts), 0.1, 0.5), torch.full((len(counts),), 0.3))


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1.57))
def test_a_widened_angle_is_its_definition_and_falls_with_the_angle(margin):
    angle = torch.linspace(0.01, torch.pi - 0.01, 500, dtype=torch.float64)
    widened = widen_angle(angle.cos(), torch.tensor(margin, dtype=torch.float64))
    inside = angle + margin < torch.pi - 1e-6
    torch.testing.assert_close(widened[inside], torch.cos(angle + margin)[inside])
    assert (widened.diff() < 0).all()
    assert (widened <= angle.cos() + 1e-12).all()


@pytest.mark.parametrize("cosine", [1.0, -1.0, 0.0])
def test_the_gradient_of_a_widened_angle_is_finite_everywhere(cosine):
    x = torch.tensor(cosine, requires_grad=True)
    widen_angle(x, torch.tensor(0.5)).backward()
    assert 0 < x.grad < 1000


def _arcface_by_hand(head, embedding, targets):
    """Equation 3 with angles, one photo at a time."""
    x, weight, scale = _unit(embedding.numpy()), _unit(head.weight.detach().numpy()), head.config.scale
    losses = []
    for photo, target in zip(x, targets.tolist(), strict=True):
        angles = np.arccos([max(photo @ centre for centre in centres) for centres in weight])
        margin = float(head.margins[target])
        own = np.exp(scale * np.cos(angles[target] + margin))
        others = sum(np.exp(scale * np.cos(angle)) for number, angle in enumerate(angles) if number != target)
        losses.append(-np.log(own / (own + others)))
    return np.mean(losses)


@pytest.mark.parametrize("centres", [1, 3])
def test_arcface_is_its_definition(centres):
    torch.manual_seed(0)
    head = ArcFaceHead(6, COUNTS, HeadConfig(centres=centres, scale=10))
    embedding, targets = _normal(7, 6), torch.tensor([0, 1, 2, 3, 3, 1, 0])
    by_hand = _arcface_by_hand(head, embedding, targets)
    assert head.loss(embedding, targets, 0.0).item() == pytest.approx(by_hand, rel=1e-4)
    nearest = np.einsum("bd,ckd->bck", _unit(embedding.numpy()), _unit(head.weight.detach().numpy())).max(axis=2)
    np.testing.assert_allclose(head(embedding).detach().numpy(), 10 * nearest, **COMPARED)


def test_without_margins_arcface_is_the_cross_entropy_of_its_logits():
    head = ArcFaceHead(6, COUNTS, HeadConfig(margin_low=0, margin_high=0))
    embedding, targets = _normal(7, 6), torch.tensor([0, 1, 2, 3, 3, 1, 0])
    expected = functional.cross_entropy(head(embedding), targets, label_smoothing=0.1)
    torch.testing.assert_close(head.loss(embedding, targets, 0.1), expected)


def test_a_photo_on_its_centre_has_a_finite_loss_and_gradient():
    head = ArcFaceHead(6, COUNTS, HeadConfig(centres=1))
    embedding = head.weight.detach()[:, 0].clone().requires_grad_()
    head.loss(embedding, torch.arange(4), 0.0).backward()
    assert torch.isfinite(embedding.grad).all()
    assert torch.isfinite(head.weight.grad).all()


def test_margins_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match="'margin_low' is above 'margin_high'"):
        HeadConfig(margin_low=0.6)


# ---- triplet loss


def _triplet_by_hand(x, targets, margin, none_class):
    """Equation 3, one pair and one negative at a time."""
    losses = []
    for a, p in itertools.permutations(range(len(x)), 2):
        if targets[a] != targets[p] or targets[a] == none_class:
            continue
        reach = ((x[a] - x[p]) ** 2).sum()
        distances = [((x[a] - x[n]) ** 2).sum() for n in range(len(x)) if targets[n] != targets[a]]
        farther = [distance for distance in distances if distance > reach]
        if distances:
            losses.append(max(0.0, reach - (min(farther) if farther else max(distances)) + margin))
    return np.mean(losses) if losses else 0.0


@settings(max_examples=40, deadline=None)
@given(
    targets=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    seed=st.integers(0, 2**16),
    margin=st.sampled_from([0.05, 0.2, 1.0]),
    none_class=st.sampled_from([None, 3]),
)
def test_the_triplet_loss_is_its_definition(targets, seed, margin, none_class):
    x = functional.normalize(_normal(len(targets), 3, seed=seed).double(), dim=1)
    loss = triplet_loss(x, torch.tensor(targets), margin, none_class=none_class)
    assert float(loss) == pytest.approx(_triplet_by_hand(x.numpy(), targets, margin, none_class), abs=1e-5)


def test_the_triplet_loss_has_the_gradient_of_squared_distances():
    x = functional.normalize(_normal(8, 4), dim=1).double()
    raw = (x * 1.5).requires_grad_()
    targets = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])

    def step(function):
        (gradient,) = torch.autograd.grad(function(functional.normalize(raw, dim=1)), raw)
        return gradient

    def by_hand(unit):
        distance = (unit[:, None] - unit).square().sum(dim=2)
        losses = []
        for a, p in itertools.permutations(range(8), 2):
            if targets[a] == targets[p]:
                others = distance[a][targets != targets[a]]
                farther = others[others > distance[a, p]]
                losses.append((distance[a, p] - (farther.min() if len(farther) else others.max()) + 0.2).relu())
        return torch.stack(losses).mean()

    assert step(by_hand).abs().max() > 0.01
    torch.testing.assert_close(step(lambda unit: triplet_loss(unit, targets, 0.2)), step(by_hand), **COMPARED)


@pytest.mark.parametrize("targets", [[0, 1, 2, 3], [1, 1, 1, 1], [3, 3, 0, 1], [0, 0, 0, 0]])
def test_a_batch_without_a_triplet_has_a_zero_loss_that_can_be_propagated(targets):
    x = functional.normalize(_normal(4, 5), dim=1).requires_grad_()
    loss = triplet_loss(x, torch.tensor(targets), 0.2, none_class=3)
    loss.backward()
    assert loss == 0
    assert torch.equal(x.grad, torch.zeros(4, 5))


def test_photos_of_nothing_are_negatives_only():
    x = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.3], [-1.0, 0.0]]), dim=1)
    among_landmarks = triplet_loss(x, torch.tensor([0, 0, 1, 1]), 0.2)
    with_nothing = triplet_loss(x, torch.tensor([0, 0, 1, 1]), 0.2, none_class=1)
    assert 0 < with_nothing < among_landmarks  # the two of nothing are far apart, and may be


def test_a_collapsed_embedding_has_the_margin_as_its_loss():
    x = torch.ones(6, 4, requires_grad=True)
    loss = triplet_loss(functional.normalize(x, dim=1), torch.tensor([0, 0, 1, 1, 2, 2]), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.2, abs=1e-5)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_triplet_loss_is_that_of_pytorch_metric_learning(seed):
    targets = torch.arange(8).repeat(2)  # two photos of each, so that an anchor has one positive, as its miner takes
    x = functional.normalize(_normal(8, 16, seed=seed).repeat(2, 1) + 0.4 * _normal(16, 16, seed=seed + 9), dim=1)
    squared = distances.LpDistance(normalize_embeddings=False, p=2, power=2)
    triplets = miners.BatchEasyHardMiner("easy", "semihard", distance=squared)(x, targets)
    assert len(triplets[0]) == 16  # every anchor has a negative that is farther than its positive
    reference = losses.TripletMarginLoss(margin=0.8, distance=squared, reducer=reducers.MeanReducer())
    ours = triplet_loss(x, targets, 0.8)
    assert ours > 0
    torch.testing.assert_close(ours, reference(x, targets, triplets), **COMPARED)


@pytest.mark.parametrize("kind", ["neighbours", "prototypes"])
def test_photo_heads_teach_the_embedding_by_triplets(kind):
    head = build_head(HeadConfig(kind=kind, triplet_margin=0.7), 6, COUNTS, none_class=3)
    embedding, targets = 5 * _normal(8, 6), torch.tensor([0, 0, 1, 1, 2, 3, 3, 3])
    expected = triplet_loss(functional.normalize(embedding, dim=1), targets, 0.7, none_class=3)
    assert expected > 0
    torch.testing.assert_close(head.loss(embedding, targets, 0.1), expected)


# ---- neighbours


def _photos_and_queries():
    chance = np.random.default_rng(0)
    return chance.normal(1, 1, (9, 5)), np.array([0, 0, 1, 1, 1, 3, 3, 1, 1]), chance.normal(1, 1, (6, 5))


def _neighbours(photos, targets, **settings):
    head = NeighbourHead(5, 4, len(photos), HeadConfig(kind="neighbours", **settings))
    head.fill(torch.from_numpy(photos).float(), torch.from_numpy(targets))
    return head


def test_neighbours_vote_for_their_class_by_their_angle():
    photos, targets, query = _photos_and_queries()
    logits = _neighbours(photos, targets, scale=4)(torch.from_numpy(query).float()).numpy()
    index, directions = _around(photos, query)
    cosine = directions @ index.T
    votes = np.stack([np.exp(4 * cosine)[:, targets == number].sum(axis=1) for number in range(4)], axis=1)
    np.testing.assert_allclose(logits, np.log(votes + np.exp(-4)), **COMPARED)
    assert np.allclose(logits[:, 2], -4)  # nobody's class


@pytest.mark.parametrize("count", [1, 3, 5, 50])
def test_the_nearest_vote_with_their_cosine_over_what_a_class_can_have(count):
    photos, targets, query = _photos_and_queries()
    head = _neighbours(photos, targets, vote="top-k", neighbours=count, scale=4)
    logits = head(torch.from_numpy(query).float())
    index, directions = (torch.from_numpy(each).float() for each in _around(photos, query))
    expected = torch.full((6, 4), -4.0)
    for number in range(6):
        best = torch.topk(index @ directions[number], min(count, 9))
        for target in set(targets[best.indices.numpy()].tolist()):
            mine = torch.from_numpy(targets == target)[best.indices]
            expected[number, target] = 4 * best.values[mine].sum() / min(count, int((targets == target).sum()))
    torch.testing.assert_close(logits, expected, **COMPARED)


@pytest.mark.parametrize(("photos", "queries"), [(7, 3), (500, 1), (500, 64), (3_000, 40)])
def test_the_nearest_are_those_of_faiss_index_flat_ip_and_of_torch_topk(photos, queries):
    head = _holding(_normal(photos, 32).numpy(), np.arange(photos) % 4, 3)
    compared = head.compare(_normal(queries, 32, seed=1))
    found = head.nearest(compared, 10)
    flat = faiss.IndexFlatIP(32)
    flat.add(head.get_buffer("index").numpy())
    cosine, expected = flat.search(compared.vectors.numpy(), min(10, photos))
    assert np.array_equal(found.numpy(), expected)
    of_torch = torch.topk(compared.products, min(10, photos), dim=1)
    assert torch.equal(found, of_torch.indices)
    np.testing.assert_allclose(of_torch.values.numpy(), cosine, **COMPARED)


def test_one_near_photo_of_a_rare_landmark_outweighs_two_of_a_common_one():
    common, rare = torch.tensor([[1.0, 0.1, 0], [1, 0.2, 0], [-1, 0, 1], [-1, 0, 2]]), torch.tensor([[1.0, -0.1, 0]])
    photos, targets = torch.cat([common, rare]).numpy(), np.array([0, 0, 0, 0, 1])
    query = torch.tensor([[1.0, 0.05, 0]])
    answers = {}
    for vote in ("kernel", "top-k"):
        head = NeighbourHead(3, 2, 5, HeadConfig(vote=vote, neighbours=4))
        head.fill(torch.from_numpy(photos), torch.from_numpy(targets))
        answers[vote] = int(head(query).argmax())
    assert answers == {"kernel": 0, "top-k": 1}


@pytest.mark.parametrize("vote", ["kernel", "top-k"])
def test_a_photo_that_is_its_own_neighbour_is_found(vote):
    photos = _normal(6, 8)
    head = NeighbourHead(8, 6, 6, HeadConfig(vote=vote))
    head.fill(photos, torch.arange(6))
    assert head(3 * photos).argmax(dim=1).tolist() == list(range(6))  # whatever its length


def _nearest_mean(cosine):
    """The mean of a row's five greatest, slowly."""
    return np.array([np.mean(sorted(row, reverse=True)[:5]) for row in cosine])


def _holding(photos, targets, none_class):
    head = NeighbourHead(photos.shape[1], targets.max() + 1, len(photos), HeadConfig(), none_class)
    head.fill(torch.from_numpy(photos).float(), torch.from_numpy(targets))
    return head


@pytest.mark.parametrize("negatives", [1, 4, 5, 30])
def test_what_neighbours_tell_of_negatives_is_the_slow_computation(negatives, monkeypatch):
    monkeypatch.setattr("zoo.photo_heads.CHUNK", 7)
    chance = np.random.default_rng(negatives)
    targets = chance.permutation([0, 0, 1, 1, 1, 2, 2] + [3] * negatives)
    photos, query = chance.normal(0.3, 1, (len(targets), 5)), chance.normal(0.3, 1, (6, 5))
    head = _holding(photos, targets, 3)

    index, directions = _around(photos, query)
    landmarks, nothing = index[targets != 3], index[targets == 3]
    of_photos = _nearest_mean(landmarks @ nothing.T)
    of_query = _nearest_mean(directions @ nothing.T)
    nearest = np.argsort(-directions @ landmarks.T, axis=1)[:, :5]
    trust = [max(landmarks[j] @ x - of_photos[j] for j in range(7)) for x in directions] - of_query
    expected = {"none_cosine": of_query, "nearest_none_cosine": of_photos[nearest].mean(axis=1), "trust": trust}
    told = head.query_features(head.compare(torch.from_numpy(query).float()))
    assert list(told) == list(expected)
    for name, values in told.items():
        np.testing.assert_allclose(values.numpy(), expected[name], **COMPARED)


def test_a_query_near_a_negative_is_trusted_less_than_one_near_a_landmark():
    photos, targets = _normal(40, 16), torch.arange(40) // 10
    head = _holding(photos.numpy(), targets.numpy(), 3)
    trust = head.query_features(head.compare(photos + 0.1 * _normal(40, 16, seed=1)))["trust"]
    assert trust[targets == 3].max() < trust[targets < 3].min()


@pytest.mark.parametrize(("none_class", "targets"), [(None, [0, 0, 1, 2]), (3, [0, 0, 1, 2])])
def test_without_negatives_neighbours_tell_nothing_of_them(none_class, targets):
    head = _holding(np.eye(4), np.array(targets), none_class)
    compared = head.compare(torch.ones(2, 4))
    assert head.query_features(compared) == {}
    assert "support_none_cosine" not in head.evidence(compared, torch.tensor([[0, 1], [2, 0]]))


def test_other_heads_tell_nothing_of_negatives():
    for kind in ("linear", "hadamard", "arcface", "prototypes"):
        head = _filled(kind)
        assert head.query_features(head.compare(_normal(2, 6))) == {}


def test_the_state_of_neighbours_is_enough_to_tell_of_negatives():
    head = _holding(_normal(20, 6).numpy(), np.arange(20) % 4, 3)
    again = NeighbourHead(6, 4, 20, HeadConfig(), 3)
    again.load_state_dict(head.state_dict())
    one, two = (each.query_features(each.compare(_normal(5, 6, seed=1))) for each in (head, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


# ---- evidence


def _evidence_by_hand(photos, targets, query, classes, none_class):
    """One candidate at a time."""
    index, directions = _around(photos, query)
    negatives = index[targets == none_class]
    told = {name: np.zeros(classes.shape) for name in ("cosine", "mean_cosine", "votes", "support_none_cosine")}
    for (row, column), number in np.ndenumerate(classes):
        cosine = index @ directions[row]
        order = np.argsort(-cosine)
        told["votes"][row, column] = np.mean(targets[order[:20]] == number)
        own = [photo for photo in order if targets[photo] == number]
        if own:
            told["cosine"][row, column] = cosine[own[0]]
            told["mean_cosine"][row, column] = np.mean(cosine[own[:5]])
            if len(negatives):
                told["support_none_cosine"][row, column] = _nearest_mean([index[own[0]] @ negatives.T])[0]
    if not len(negatives):
        del told["support_none_cosine"]
    return told


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=3, max_size=7).filter(lambda sizes: sum(sizes) > 1),
    none_class=st.sampled_from([None, -1]),
    keep=st.integers(1, 7),
    seed=st.integers(0, 2**16),
)
def test_the_evidence_of_neighbours_is_the_slow_computation(sizes, none_class, keep, seed):
    chance = np.random.default_rng(seed)
    targets = chance.permutation(np.repeat(np.arange(len(sizes)), sizes))
    last = len(sizes) - 1 if none_class else None
    photos, query = chance.normal(0.3, 1, (len(targets), 5)), chance.normal(0.3, 1, (4, 5))
    landmarks = len(sizes) - (last is not None)
    classes = np.array([chance.permutation(landmarks)[:keep] for _ in query])
    head = NeighbourHead(5, len(sizes), len(photos), HeadConfig(), last)
    head.fill(torch.from_numpy(photos).float(), torch.from_numpy(targets))
    told = head.evidence(head.compare(torch.from_numpy(query).float()), torch.from_numpy(classes))
    expected = _evidence_by_hand(photos, targets, query, classes, last)
    assert list(told) == list(expected)
    for name, values in told.items():
        assert values.dtype == torch.float32
        np.testing.assert_allclose(values.numpy(), expected[name], err_msg=name, **COMPARED)


def test_the_evidence_of_a_query_does_not_depend_on_the_other_queries():
    targets = np.arange(60) % 4
    head = _holding(_normal(60, 4).numpy(), targets, 3)
    query, classes = _normal(8, 4, seed=1), torch.tensor([[0, 1, 2]] * 8)
    compared = head.compare(query)
    together = head.evidence(compared, classes)
    for row in range(8):
        one = Compared(compared.vectors[row : row + 1], compared.products[row : row + 1])
        alone = head.evidence(one, classes[row : row + 1].flip(1))
        for name, values in together.items():
            assert torch.equal(alone[name].flip(1)[0], values[row])


def test_the_evidence_of_prototypes_is_the_cosine():
    photos, targets, query = _photos_and_queries()
    head = PrototypeHead(5, 4, HeadConfig(shrink=3.0))
    head.fill(torch.from_numpy(photos).float(), torch.from_numpy(targets))  # class 2 has no photo
    index, directions = _around(photos, query)
    means = [index[targets == number].mean(axis=0) for number in (3, 0, 1)]
    classes = torch.tensor([[3, 0, 1, 2]] * 6)
    told = head.evidence(head.compare(torch.from_numpy(query).float()), classes)
    assert list(told) == ["cosine"]
    np.testing.assert_allclose(told["cosine"][:, :3].numpy(), directions @ _unit(np.array(means)).T, **COMPARED)
    assert not told["cosine"][:, 3].any()


# ---- prototypes


@pytest.mark.parametrize("shrink", [0.0, 1.0, 4.0])
def test_prototypes_are_shrunken_means_and_logits_are_distances_to_them(shrink):
    photos, targets, query = _photos_and_queries()
    targets[0] = 2
    head = PrototypeHead(5, 4, HeadConfig(scale=8, shrink=shrink))
    head.fill(torch.from_numpy(photos).float(), torch.from_numpy(targets))
    index, directions = _around(photos, query)
    prototypes = []
    for number in range(4):
        mine = index[targets == number]
        prototypes.append(len(mine) * mine.mean(axis=0) / (len(mine) + shrink))
    distances = ((directions[:, None] - np.array(prototypes)) ** 2).sum(axis=2)
    np.testing.assert_allclose(head.prototypes.numpy(), prototypes, **COMPARED)
    logits = head(torch.from_numpy(query).float()).numpy()
    np.testing.assert_allclose(logits, -4 * (distances - 1), **COMPARED)
    assert -12 <= logits.min() <= logits.max() <= 4


def test_shrinkage_shortens_the_prototypes_of_few_photos_most():
    photos, targets = _normal(21, 8, mean=0.5), torch.tensor([0] * 20 + [1])
    lengths = {}
    for shrink in (0.0, 1.0):
        head = PrototypeHead(8, 2, HeadConfig(shrink=shrink))
        head.fill(photos, targets)
        lengths[shrink] = head.prototypes.norm(dim=1)
    kept = lengths[1.0] / lengths[0.0]
    torch.testing.assert_close(kept, torch.tensor([20 / 21, 1 / 2]))


def test_shrinkage_lets_a_landmark_with_one_photo_compete():
    chance = torch.Generator().manual_seed(0)
    centres = 0.8 * torch.randn(20, 32, generator=chance)

    def draw(targets):
        return centres[targets] + torch.randn(len(targets), 32, generator=chance)

    targets = torch.arange(20).repeat_interleave(torch.tensor([1] * 10 + [20] * 10))
    photos, query_targets = draw(targets), torch.arange(20).repeat(20)
    queries, found = draw(query_targets), {}
    for shrink in (0.0, 1.0):
        head = PrototypeHead(32, 20, HeadConfig(shrink=shrink))
        head.fill(photos, targets)
        right = head(queries).argmax(dim=1) == query_targets
        found[shrink] = float(right[query_targets < 10].float().mean())
    assert found[1.0] > found[0.0] + 0.1
