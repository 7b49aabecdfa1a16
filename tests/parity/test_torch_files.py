"""Files of ``torch.save``, read without torch, equal what ``torch.load`` reads, bit for bit."""

import warnings

import numpy as np
import pytest
import torch

from cnnjax.types import UserError
from cnnjax.weights import formats
from cnnjax.weights.formats import torch as torch_format

FORMATS = {"zip": True, "legacy": False}


@pytest.fixture(params=[(kind, protocol) for kind in FORMATS for protocol in (2, 4, 5)], ids=str)
def saved(request, tmp_path):
    """Function that saves a value in a format and protocol and returns the path."""
    kind, protocol = request.param

    def save(value):
        path = tmp_path / "it.pth"
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=FORMATS[kind])
        assert formats.recognized(path) is torch_format.FORMAT
        return path

    return save


def check(path, expected):
    with torch_format.opened(path) as content:
        assert content.names == "torch"
        assert list(content.tensors) == list(expected)
        for key, tensor in content.tensors.items():
            theirs, ours = expected[key].detach().contiguous(), tensor.read()
            assert ours.shape == tensor.shape == tuple(theirs.shape), key
            assert str(theirs.dtype) == f"torch.{ours.dtype.name}", key
            assert ours.tobytes() == theirs.reshape(-1).view(torch.uint8).numpy().tobytes(), key


def layers():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 5))
    return model, {key: value for key, value in model.state_dict().items() if "num_batches" not in key}


def test_a_state_dict(saved):
    model, expected = layers()
    check(saved(model.state_dict()), expected)
    check(saved({"epoch": 3, "args": [1.5, None, ("x", True)], "state_dict": model.state_dict()}), expected)
    check(saved({"model": dict(model.named_parameters()), "state_dict": None}), dict(model.named_parameters()))
    check(saved({"best": np.float64(0.91), "net": model.state_dict()}), expected)


def test_data_parallel_and_an_optimizer(saved):
    model, expected = layers()
    optimizer = torch.optim.Adam(model.parameters())
    model[2](model[1](model[0](torch.ones(2, 3, 4, 4))).mean((2, 3))).sum().backward()
    expected = {key: value.clone() for key, value in expected.items() if "running" not in key}
    state = {"state_dict": torch.nn.DataParallel(model).state_dict(), "optimizer": optimizer.state_dict()}
    optimizer.step()
    state["optimizer"] = optimizer.state_dict()
    # DataParallel's prefix stays here: it is taken off where the names are matched with a model.
    after = {f"module.{key}": value for key, value in model.state_dict().items() if "num_batches" not in key}
    check(saved(state), after)


def test_types(saved):
    values = torch.tensor([0, 1, 2, 3, 100, 127])
    names = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    check(
        saved({name: values.to(getattr(torch, name)) for name in names}),
        {n: values.to(getattr(torch, n)) for n in names},
    )


def test_views_and_shared_storages(saved):
    x = torch.randn(4, 6, 2)
    views = {
        "all": x,
        "transposed": x.permute(2, 0, 1),
        "sliced": x[1:3, ::2],
        "strided": torch.as_strided(x, (2, 3), (12, 5), 7),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": x[3, 5, 1],
        "empty": torch.zeros(0, 3),
        "tied": torch.nn.Parameter(x),
    }
    check(saved(views), views)


def test_an_expanded_tensor_and_what_is_no_state_dict_are_refused(saved):
    for value, says in (
        ({"w": torch.ones(1).expand(10**6)}, "an expanded tensor"),
        ({"w": torch.ones(2).to_sparse()}, "asks for torch._utils._rebuild_sparse_tensor"),
        ({"w": torch.ones(2).to(torch.complex64)}, "asks for torch.ComplexFloatStorage"),
        (torch.nn.Linear(2, 3), "asks for torch.nn.modules.linear.Linear"),
        (torch.ones(2), "expected a state dict"),
    ):
        path = saved(value)
        with pytest.raises(UserError, match=says), torch_format.opened(path):
            pass


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "it.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    with pytest.raises(UserError, match="TorchScript"), torch_format.opened(path):
        pass
