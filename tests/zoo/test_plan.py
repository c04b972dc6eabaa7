"""What training would take: it is measured, scales with the work, and leaves no trace."""

import pytest

from zoo.members import Member, run_member
from zoo.plan import plan_members
from zoo.recipe import LocalConfig
from zoo.samplers import SamplerConfig


@pytest.fixture(scope="module")
def neighbours(frozen):
    """A member that trains nothing, on the embeddings of the frozen one."""
    head = frozen.head.model_copy(update={"kind": "neighbours"})
    return frozen.model_copy(update={"name": "tiny-neighbours", "head": head})


@pytest.fixture(scope="module")
def planned(tmp_path_factory, make_context, photos, frozen, scratch, neighbours):
    """An empty run, and the plans of three members in it."""
    root = tmp_path_factory.mktemp("plan")
    return root, plan_members(make_context(root, photos), [frozen, scratch, neighbours])


def test_nothing_is_written(planned):
    assert not list(planned[0].iterdir())


def test_each_kind_of_work_counts_where_there_is_some(planned):
    frozen, scratch, neighbours = planned[1]
    assert not any(plan.finished for plan in planned[1])
    assert all(plan.preparing_seconds > 0 for plan in (frozen, scratch))
    assert all(plan.images_per_second > 0 for plan in (frozen, scratch))
    assert (neighbours.images_per_second, neighbours.training_seconds) == (None, 0)
    assert all(plan.scoring_seconds > 0 for plan in planned[1])


def test_shared_embeddings_count_for_the_first_member(planned, make_context, photos, neighbours):
    root, (_, _, sharing) = planned
    assert sharing.preparing_seconds == 0
    [alone] = plan_members(make_context(root, photos), [neighbours])
    assert alone.preparing_seconds > 0


def test_parameters_are_those_that_learn(planned, make_context, photos, scratch, tmp_path):
    frozen, scratched, neighbours = planned[1]
    model = Member(make_context(tmp_path, photos), scratch).new_model(0)
    assert scratched.parameters == sum(each.numel() for each in model.parameters())
    assert 0 < frozen.parameters < scratched.parameters
    assert neighbours.parameters == 0


def test_memory_grows_with_the_batch_by_what_it_keeps(planned, make_context, photos, scratch):
    root, (_, small, _) = planned
    larger = scratch.model_copy(update={"train": scratch.train.model_copy(update={"batch_size": 16})})
    [large] = plan_members(make_context(root, photos), [larger], [0])
    fixed = 16 * small.parameters
    assert large.memory_bytes - fixed == pytest.approx(2 * (small.memory_bytes - fixed), rel=0.1)


@pytest.mark.parametrize("kind", ["shuffled", "over"])
def test_the_time_is_that_of_the_steps_a_training_makes(kind, make_context, photos, scratch, tmp_path):
    train = scratch.train.model_copy(update={"epochs": 2.4, "sampler": SamplerConfig(kind=kind)})
    recipe = scratch.model_copy(update={"train": train})
    context = make_context(tmp_path, photos)
    [plan] = plan_members(context, [recipe], [0])
    totals = []
    watched = context.progress.task
    context.progress.task = lambda label, total, unit: totals.append((unit, total)) or watched(label, total, unit)
    run_member(context, recipe, [0])
    [steps] = [total for unit, total in totals if unit == "step"]
    assert plan.training_seconds * plan.images_per_second == pytest.approx(steps * train.batch_size)


def test_finished_members_take_no_time(finished, make_context, photos, frozen, scratch):
    plans = plan_members(make_context(finished, photos), [frozen, scratch])
    assert [(plan.finished, plan.seconds, plan.images_per_second) for plan in plans] == [(True, 0, None)] * 2


def test_a_changed_recipe_is_to_be_trained_but_not_embedded_again(finished, make_context, photos, frozen):
    train = frozen.train.model_copy(update={"lr": 0.5})
    [plan] = plan_members(make_context(finished, photos), [frozen.model_copy(update={"train": train})])
    assert plan.training_seconds > 0
    assert plan.preparing_seconds == 0


def test_other_candidates_are_only_scored(finished, make_context, photos, scratch):
    [plan] = plan_members(make_context(finished, photos), [scratch.model_copy(update={"candidates": 2})])
    assert plan.training_seconds == 0
    assert plan.scoring_seconds > 0


def test_verification_adds_its_features_and_its_comparisons(finished, make_context, photos, frozen):
    local = LocalConfig(size=32, keypoints=20, candidates=3)
    [plan] = plan_members(make_context(finished, photos), [frozen.model_copy(update={"local": local})])
    assert plan.training_seconds == 0
    assert plan.preparing_seconds > 0
    assert plan.scoring_seconds > 0


def test_what_does_not_fit_into_memory_is_not_tried(make_context, photos, scratch, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.plan._Trial._free_memory", lambda _: 1)
    [plan] = plan_members(make_context(tmp_path, photos), [scratch])
    assert not plan.fits
    assert plan.memory_bytes > 1
    assert plan.seconds == 0


def test_asked_to_stop_it_stops(make_context, photos, watch, frozen, tmp_path):
    context = make_context(tmp_path, photos, watch())
    context.stop.requested = True
    with pytest.raises(KeyboardInterrupt):
        plan_members(context, [frozen, frozen])
