"""The simulated CUDA device: refuses what a GPU refuses, counts waits, and leaves torch as it was."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest
import torch
from simulated_cuda import CUDA, CudaTensor, SimulatedCuda

from torchlinreg import TorchLinearRegressor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device; tests run on it")


@pytest.fixture
def simulated():
    with SimulatedCuda() as device:
        yield device


def matrix():
    return torch.arange(6.0, dtype=torch.float64).reshape(2, 3)


MAKERS = {
    "cuda": lambda: matrix().cuda(),
    "to a name": lambda: matrix().to("cuda"),
    "to a device and dtype": lambda: matrix().float().to(CUDA, torch.float64),
    "to a keyword": lambda: matrix().to(device="cuda:0"),
    "to a tensor's device": lambda: matrix().to(torch.zeros(1, dtype=torch.float64, device="cuda")),
    "arange": lambda: torch.arange(6.0, dtype=torch.float64, device="cuda").reshape(2, 3),
    "tensor": lambda: torch.tensor(matrix().tolist(), dtype=torch.float64, device="cuda"),
    "as_tensor": lambda: torch.as_tensor(matrix().numpy(), device="cuda"),
    "copy_": lambda: torch.empty((2, 3), dtype=torch.float64, device="cuda").copy_(matrix()),
    "out": lambda: torch.add(matrix().cuda(), 0, out=torch.empty(2, 3, dtype=torch.float64, device="cuda")),
    "in place": lambda: matrix().cuda().mul_(1),
    "view": lambda: torch.stack([matrix().cuda()])[0],
    "largest": lambda: torch.stack([matrix().cuda(), matrix().cuda() - 1]).max(0).values,
    "iteration": lambda: torch.stack(list(matrix().cuda())),
    "deepcopy": lambda: copy.deepcopy(matrix().cuda()),
    "pickle": lambda: pickle.loads(pickle.dumps(matrix().cuda())),
    "detach": lambda: matrix().cuda().requires_grad_().detach(),
    "parameter": lambda: torch.nn.Parameter(matrix().cuda()).data,
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.usefixtures("simulated")
def test_tensors_are_there(name):
    there = MAKERS[name]()
    assert isinstance(there, CudaTensor)
    assert there.is_cuda
    assert not there.is_cpu
    assert there.device == torch.device("cuda:0")
    assert there.dtype is torch.float64
    assert there.shape == (2, 3)
    back = there.cpu()
    assert type(back) is torch.Tensor
    assert back.device.type == "cpu"
    torch.testing.assert_close(back, matrix(), rtol=0, atol=0)


@pytest.mark.usefixtures("simulated")
def test_a_copy_shares_no_memory():
    here = torch.zeros(3)
    there = here.cuda()
    back = there.cpu()
    there += 1
    torch.testing.assert_close(here, torch.zeros(3))
    torch.testing.assert_close(back, torch.zeros(3))
    array = np.zeros(3)
    torch.as_tensor(array, device="cuda").add_(1)
    np.testing.assert_array_equal(array, 0)


@pytest.mark.usefixtures("simulated")
def test_views_share_memory():
    there = matrix().cuda()
    there[0] = -1
    there[:, 1].mul_(10)
    there.T[2, 1] = 7
    torch.testing.assert_close(there.cpu(), torch.tensor([[-1.0, -10, -1], [3, 40, 7]]).double())


MIXTURES = {
    "sum": lambda here, there: here + there,
    "sum, other way round": lambda here, there: there + here,
    "in place": lambda here, there: there.add_(here),
    "in place of CPU's": lambda here, there: here.add_(there),
    "a number on the CPU in place": lambda here, there: here.sum().add_(there.sum()),
    "product": lambda here, there: here.T @ there,
    "comparison": lambda here, there: there < here,
    "out": lambda here, there: torch.add(there, there, out=here),
    "list": lambda here, there: torch.cat([there, here]),
    "where": lambda here, there: torch.where(there > 0, there, here),
    "addmm": lambda here, there: torch.addmm(here, there, there.T @ there),
    "index_select": lambda here, there: there.index_select(0, torch.tensor([0])),
    "indices there, rows here": lambda here, there: here[torch.tensor([0], device="cuda")],
    "indices there, put here": lambda here, there: here.__setitem__(torch.tensor([0], device="cuda"), 1),
    "values from here at indices": lambda here, there: there.__setitem__(torch.tensor([0, 1]), here),
    "random numbers": lambda here, there: torch.randperm(3, generator=torch.Generator(), device="cuda"),
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.usefixtures("simulated")
def test_devices_do_not_mix(name):
    here, there = matrix(), matrix().cuda()
    with pytest.raises(RuntimeError, match=r"same device|'cuda' device type for generator"):
        MIXTURES[name](here, there)
    torch.testing.assert_close(here, matrix())
    torch.testing.assert_close(there.cpu(), matrix())


@pytest.mark.usefixtures("simulated")
def test_what_may_mix():
    here, there = matrix(), matrix().cuda()
    torch.testing.assert_close((there * here.sum()).cpu(), here * here.sum())
    torch.testing.assert_close(there[torch.tensor([1])].cpu(), here[[1]])
    there[:1] = here[1:]  # a copy
    torch.testing.assert_close(there.cpu(), here[[1, 1]])


@pytest.mark.parametrize("as_array", [np.asarray, torch.Tensor.numpy, lambda t: t.T.numpy()])
@pytest.mark.usefixtures("simulated")
def test_numpy_is_refused(as_array):
    with pytest.raises(TypeError, match=r"cuda:0 .* Use Tensor.cpu\(\)"):
        as_array(matrix().cuda())


WAITS = {
    "cpu": (lambda there: there.cpu(), "copy"),
    "to": (lambda there: there.to("cpu"), "copy"),
    "copy_": (lambda there: torch.empty(2, 3).copy_(there), "copy"),
    "assignment": (lambda there: torch.empty(2, 3).__setitem__(slice(None), there), "copy"),
    "numpy": (lambda there: there.numpy(force=True), "copy"),
    "tolist": (lambda there: there.tolist(), "copy"),
    "float": (lambda there: float(there[0, 0]), "scalar"),
    "int": (lambda there: int(there[0, 0]), "scalar"),
    "bool": (lambda there: bool(there[0, 0]), "scalar"),
    "item": (lambda there: there.sum().item(), "scalar"),
    "index": (lambda there: range(2)[there.argmin()], "scalar"),
    "format": (lambda there: f"{there.sum():g}", "scalar"),
    "equal": (lambda there: torch.equal(there, there), "scalar"),
    "nonzero": (lambda there: torch.nonzero(there), "size"),
    "mask": (lambda there: there[there > 2], "size"),
    "values by mask": (lambda there: there.__setitem__(there > 3, there[1, 1:].clone()), "size"),
    "factor": (lambda there: torch.linalg.cholesky(there @ there.T), "check"),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_counted(name, simulated):
    wait, kind = WAITS[name]
    there = matrix().cuda()
    wait(there)
    assert simulated.waits == {kind: 1}


def test_work_on_the_device_does_not_wait(simulated):
    there = matrix().cuda()
    gram = there @ there.T + torch.eye(2, dtype=torch.float64, device="cuda")
    factor, _ = torch.linalg.cholesky_ex(gram)
    torch.cholesky_solve(gram, factor).sum().sqrt()
    there[there > 3] = 0.0
    there[0] += there[1].max()
    torch.cat([there, torch.zeros_like(there)]).index_select(0, torch.arange(2, device="cuda"))
    matrix()[matrix() > 2].sum().item()  # on the CPU
    assert not simulated.waits


def test_places_name_the_line_of_the_package(simulated):
    rng = np.random.default_rng(0)
    TorchLinearRegressor(device="cuda").fit(rng.standard_normal((30, 2)), rng.standard_normal(30))
    assert simulated.waits.total() == simulated.places.total() > 0
    assert all(place.split(":")[0].endswith(".py") for place in simulated.places)
    assert "_moments/moments.py" in {place.split(":")[0] for place in simulated.places}


@pytest.mark.usefixtures("simulated")
def test_gradients():
    def slope(at):
        at = at.requires_grad_()
        (first,) = torch.autograd.grad(torch.log(torch.cosh(at[:, 1:] - 1)).sum(), at, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), at)
        return first, second

    for there, here in zip(slope(matrix().cuda()), slope(matrix()), strict=True):
        assert there.is_cuda
        torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
@pytest.mark.usefixtures("simulated")
def test_optimizers(optimizer):
    ends = []
    for device in ("cpu", "cuda"):
        parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float64).to(device))
        steps = optimizer([parameter], lr=0.1)

        def closure(parameter=parameter, steps=steps):
            steps.zero_grad()
            loss = parameter.square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            steps.step(closure)
        assert parameter.device.type == parameter.grad.device.type == device
        ends.append(parameter.detach().cpu())
    torch.testing.assert_close(*ends, rtol=1e-15, atol=1e-15)
    assert not torch.equal(ends[0], torch.ones(3, dtype=torch.float64))


@pytest.mark.usefixtures("simulated")
def test_threads_see_the_device():
    with ThreadPoolExecutor(2) as pool:
        tensors = list(pool.map(lambda n: torch.zeros(n, device="cuda") + 1, range(1, 5)))
    assert all(tensor.is_cuda for tensor in tensors)


class TestAfterwards:
    """Torch is as it was, whether the context ends or fails."""

    @staticmethod
    def state():
        names = [name for name in vars(torch.cuda) if callable(getattr(torch.cuda, name))]
        return {
            **{name: getattr(torch.cuda, name) for name in names},
            "default device": torch.get_default_device(),
            "default dtype": torch.get_default_dtype(),
            "gradients": torch.is_grad_enabled(),
            "thread": threading.Thread.run,
            "functions": torch.overrides._len_torch_function_stack(),
            "operators": torch.utils._python_dispatch._len_torch_dispatch_stack(),
            "optimizers": import_module("torch.optim.optimizer")._foreach_supported_types,
        }

    def test_after_the_end(self):
        before = self.state()
        with SimulatedCuda():
            assert torch.cuda.is_available()
            assert torch.cuda.device_count() == 1
            torch.zeros(1, device="cuda")
        assert self.state() == before
        assert not torch.cuda.is_available()

    def test_after_an_error(self):
        before = self.state()
        with pytest.raises(RuntimeError, match="same device"), SimulatedCuda():
            _ = torch.zeros(2) + torch.zeros(2, device="cuda")
        assert self.state() == before

    def test_a_context_within(self):
        with SimulatedCuda() as outer:
            with SimulatedCuda() as inner:
                torch.zeros(1, device="cuda").item()
            torch.zeros(1, device="cuda").cpu()
        assert inner.waits == {"scalar": 1}
        assert outer.waits == {"copy": 1}

    def test_no_device_is_there(self):
        with SimulatedCuda():
            torch.zeros(1, device="cuda")
        with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
            torch.zeros(1, device="cuda")
        with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
            torch.zeros(1).cuda()
        with pytest.raises(ValueError, match="0 CUDA devices"):
            TorchLinearRegressor(device="cuda").fit([[0.0], [1.0]], [0.0, 1.0])


@pytest.mark.cuda
def test_marked_tests_see_a_device():
    assert torch.cuda.is_available()


def test_other_tests_see_none():
    assert not torch.cuda.is_available()
