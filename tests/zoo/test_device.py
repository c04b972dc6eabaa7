"""A device is the one asked for, or the message says which there are."""

import faiss
import pytest
import torch

from engine.core.errors import ResourceError
from zoo.device import SMALL, make_accelerator, pick_device, pick_precision, threads_for


@pytest.fixture(autouse=True)
def _threads():
    """Leave the number of threads as it was."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


def test_a_second_accelerator_in_one_process_may_choose_anew():
    for precision, word in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        accelerator = make_accelerator("cpu", precision, 1)
        assert accelerator.device == torch.device("cpu")
        assert accelerator.mixed_precision == word


def test_bf16_is_what_a_network_computes_in_under_autocast():
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with make_accelerator("cpu", precision, 1).autocast():
            assert torch.nn.Linear(3, 3)(torch.ones(1, 3)).dtype == dtype


def test_automatic_precision_is_one_the_device_has():
    assert pick_precision(torch.device("cpu")) in {"fp32", "bf16"}
    assert make_accelerator("cpu", "auto", 1).mixed_precision in {"no", "bf16"}


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_as_many_as_asked_for(threads):
    make_accelerator("cpu", "fp32", threads)
    assert torch.get_num_threads() == faiss.omp_get_max_threads() == threads


@pytest.mark.parametrize(
    ("parameters", "device", "threads"),
    [(0, "cpu", 1), (SMALL - 1, "cpu", 1), (SMALL, "cpu", 2), (0, "cuda:0", 2), (0, "mps", 2)],
)
def test_a_small_network_on_the_cpu_has_one_thread_and_then_there_are_as_many_as_before(parameters, device, threads):
    torch.set_num_threads(2)
    with threads_for(parameters, torch.device(device)):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_a_small_network_that_fails_leaves_the_threads_as_they_were():
    torch.set_num_threads(2)
    with pytest.raises(ResourceError, match="no room"), threads_for(0, torch.device("cpu")):
        raise ResourceError("no room")
    assert torch.get_num_threads() == 2


def test_auto_takes_a_device_that_is_there():
    device = pick_device("auto")
    assert torch.zeros(1, device=device).device.type == device.type


@pytest.mark.faults
@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cpu cpu"])
def test_an_unknown_device_is_refused_with_the_names_there_are(name):
    with pytest.raises(ResourceError, match=r"not known — use auto, cpu, cuda"):
        make_accelerator(name, "fp32", 1)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["cuda:999", "xpu", "meta"])
def test_a_device_that_is_not_there_is_refused_with_its_remedy(name):
    with pytest.raises(ResourceError, match=rf"'{name}' is not on this machine — use --device cpu"):
        make_accelerator(name, "fp32", 1)


@pytest.mark.faults
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent_is_refused():
    with pytest.raises(ResourceError, match="'cuda' is not on this machine"):
        make_accelerator("cuda", "auto", 1)
