"""The exported PyTorch module is the loss, and refuses what the loss refuses."""

import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax.losses.export import export_loss
from tests.test_evolved_loss import LABELS, LOSSES, logits_of, random_loss
from tests.test_export import value_and_gradient
from tests.test_loss_file import rewritten

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=LOSSES)
def exported(request, tmp_path_factory):
    """A loss, and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("exported")
    export_loss(LOSSES[request.param], folder)
    return LOSSES[request.param], folder


@pytest.fixture(scope="module")
def twin(exported):
    return torch_loss(exported[1])


def torch_loss(folder):
    """The PyTorch twin, from the files of the folder alone."""
    spec = importlib.util.spec_from_file_location("evolved_loss", folder / "evolved_loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EvolvedLoss(folder / "loss.safetensors")


@pytest.mark.parametrize("scale", [0.01, 3.0, 1e4])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_pytorch_module_is_the_loss_and_its_gradient(exported, kind, scale):
    loss, folder = exported
    logits = logits_of(scale=scale)
    labels = LABELS if kind == "hard" else jax.nn.softmax(logits_of(seed=5))
    expected = value_and_gradient(loss, logits, labels)
    x = torch.tensor(np.asarray(logits), requires_grad=True)
    y = torch.tensor(np.asarray(labels, np.int64 if kind == "hard" else np.float32))
    value = torch_loss(folder)(x, y).sum()
    value.backward()
    np.testing.assert_allclose(value.detach(), expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(x.grad, expected[1], rtol=1e-6, atol=1e-6)


def test_pytorch_module_keeps_shape_dtype_and_parameters(exported):
    _, folder = exported
    twin = torch_loss(folder)
    x = torch.zeros(2, 3, 5, dtype=torch.bfloat16, requires_grad=True)
    losses = twin(x, torch.zeros(2, 3, dtype=torch.int64))
    assert (losses.shape, losses.dtype) == ((2, 3), torch.bfloat16)
    assert list(twin.parameters()) == []
    with pytest.raises(ValueError, match=r"labels \(3,\)"):
        twin(x, torch.zeros(3, dtype=torch.int64))


X = torch.linspace(-3, 5, 30).reshape(6, 5)
Y = torch.tensor([0, 1, 2, 3, 4, 0])
SOFT = torch.softmax(X.flip(1), -1)
INTEGERS = ["uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_pytorch_module_takes_classes_of_any_integer_dtype(twin, dtype):
    torch.testing.assert_close(twin(X, Y.to(getattr(torch, dtype))), twin(X, Y))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32", "bool"])
def test_pytorch_module_takes_soft_labels_of_any_dtype(twin, dtype):
    one_hot = torch.nn.functional.one_hot(Y, 5)
    torch.testing.assert_close(twin(X, one_hot.to(getattr(torch, dtype))), twin(X, Y))
    if dtype.startswith(("float", "bfloat")):
        near = {"float64": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
        found = twin(X, SOFT.to(getattr(torch, dtype)))
        torch.testing.assert_close(found, twin(X, SOFT), rtol=near, atol=near)


NO_LABELS = {
    "the class count": (Y + 1, r"labels hold 5; expected classes in \[0, 5\)"),
    "-1, as of an example to ignore": (Y - 1, "labels hold -1;"),
    "-100, as PyTorch's": (torch.where(Y == 2, -100, Y), "labels hold -100;"),
    "255, as of a byte that was -1": ((Y - 1).to(torch.uint8), "labels hold 255;"),
    "a number of 64 bits": ((Y - 1).to(torch.uint64), "labels hold 18446744073709551615;"),
    "floats": (Y.float(), r"labels \(6,\) and torch.float32"),
    "truth values": (Y > 1, r"labels \(6,\) and torch.bool"),
    "complex numbers": (SOFT + 0j, r"labels \(6, 5\) and torch.complex64"),
    "a list": (Y.tolist(), "labels are of type list; expected a tensor"),
    "a number": (0, "labels are of type int; expected a tensor"),
    "an array of NumPy": (Y.numpy(), "labels are of type ndarray; expected a tensor"),
    "too few": (Y[:3], r"labels \(3,\)"),
    "soft, infinite": (SOFT / torch.tensor([1.0, 1, 0, 1, 1]), "soft labels"),
    "soft, NaN": (SOFT.where(SOFT > 0.5, torch.nan), "soft labels"),
    "soft, negative": (SOFT - torch.tensor([1.0, -1, 0, 0, 0]), "expected soft labels"),
    "soft, classes": (Y[:5].expand(6, 5), "expected soft labels"),
    "soft, of no mass": (0 * SOFT, "expected soft labels"),
}


@pytest.mark.parametrize("labels", NO_LABELS)
def test_pytorch_module_refuses_labels_that_do_not_fit(twin, labels):
    value, message = NO_LABELS[labels]
    with pytest.raises(ValueError, match=message):
        twin(X, value)


def test_pytorch_module_refuses_a_soft_label_of_a_single_example(twin):
    with pytest.raises(ValueError, match="expected soft labels"):
        twin(X[0], SOFT[0] / 2)


@pytest.mark.parametrize("logits", [Y[:, None].expand(6, 5), X[:, :1], X[0, 0], X + 0j])
def test_pytorch_module_refuses_logits_that_do_not_fit(twin, logits):
    with pytest.raises(ValueError, match=r"logits have shape .* expected"):
        twin(logits, Y)


@pytest.mark.filterwarnings("ignore:dynamo_pgo")  # of the first to compile in a process
def test_pytorch_module_gives_nan_where_it_cannot_look_at_labels(twin):
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    exported = torch.export.export(twin, (X, Y)).module()
    assert exported(X, torch.where(Y == 2, -100, Y)).isnan().tolist() == (Y == 2).tolist()
    for loss in (compiled, torch.func.vmap(twin)):
        torch.testing.assert_close(loss(X, Y), twin(X, Y))
        torch.testing.assert_close(loss(X, SOFT), twin(X, SOFT))
        for odd in (5, -1, -100):
            found = loss(X, torch.where(Y == 2, odd, Y))
            assert found.isnan().tolist() == (Y == 2).tolist()
        for odd in (torch.inf, torch.nan):
            found = loss(X, torch.where(Y[:, None] == 2, odd, SOFT))
            assert found.isnan().tolist() == (Y == 2).tolist()


@pytest.mark.parametrize("labels", [Y, SOFT])
def test_pytorch_module_has_a_gradient_for_each_example(twin, labels):
    each = torch.func.vmap(torch.func.grad(twin))(X, labels)
    torch.testing.assert_close(each, torch.func.grad(lambda x: twin(x, labels).sum())(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [Y, SOFT])
def test_pytorch_module_computes_in_float32_under_autocast_and_in_a_narrow_module(
    exported, labels, dtype
):
    twin = torch_loss(exported[1])
    logits = torch.cat([X, X - 2e4 * (X > 4)])  # which overflowed in float16
    labels = torch.cat([labels, labels])
    expected = twin(logits, labels)
    assert expected.isfinite().all()
    with torch.autocast("cpu", dtype):
        inside = twin(logits.requires_grad_(), labels)
        inside.sum().backward()
    torch.testing.assert_close(inside, expected, rtol=0, atol=0)
    assert logits.grad.isfinite().all()
    # What is around it is narrow, as of a model that holds its loss; results are in float32.
    holder = torch.nn.ModuleList([twin, torch.nn.Linear(2, 2)]).to(dtype)
    assert holder[1].weight.dtype == dtype
    assert {x.dtype for x in twin.buffers()} == {torch.float32}
    torch.testing.assert_close(twin(logits, labels), expected, rtol=0, atol=0)
    narrow = logits.detach().to(dtype)
    found = twin(narrow, labels)
    assert found.dtype == dtype
    torch.testing.assert_close(found, twin(narrow.float(), labels).to(dtype))


@pytest.mark.parametrize("num_classes", [None, 400])
def test_memory_of_soft_labels_grows_with_the_classes_and_no_faster(num_classes, tmp_path):
    export_loss(random_loss(0, num_classes), tmp_path)
    twin, kept = torch_loss(tmp_path), {}
    logits = torch.randn(8, 400).requires_grad_()
    labels = torch.softmax(logits.detach(), -1)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.setdefault(x.untyped_storage().data_ptr(), x), x)[1], lambda x: x
    ):
        losses = twin(logits, labels)
    # About 40 numbers for each class of each example: the network's layers.
    assert sum(x.untyped_storage().nbytes() for x in kept.values()) < 200 * logits.numel()
    losses.sum().backward()
    assert logits.grad.isfinite().all()


def test_pytorch_module_takes_soft_labels_in_blocks_of_classes(exported):
    twin = torch_loss(exported[1])
    found = {}
    for block in (65536, 12):  # two classes of six examples, and a remainder
        type(twin)._losses.__globals__["_BLOCK"] = block
        x = X.clone().requires_grad_()
        value = twin(x, SOFT)
        value.sum().backward()
        transformed = torch.func.grad(lambda x: twin(x, SOFT).sum())(X)  # which has no checkpoints
        found[block] = value.detach(), x.grad, transformed
    torch.testing.assert_close(found[12], found[65536])


def test_memory_of_soft_labels_is_that_of_a_block(tmp_path):
    """At 256 x 1,000 all hidden layers at once would take 70 MB."""
    export_loss(random_loss(0), tmp_path)
    logits = torch.randn(256, 1000).requires_grad_()
    labels = torch.softmax(logits.detach(), -1)
    with torch.profiler.profile(profile_memory=True) as profile:
        torch_loss(tmp_path)(logits, labels).sum().backward()
    changes = [x for x in profile.profiler.kineto_results.events() if x.name() == "[memory]"]
    changes.sort(key=lambda x: x.start_ns())
    assert max(itertools.accumulate(x.nbytes() for x in changes)) < 45e6


@pytest.mark.parametrize("row", [[2, 2, 1, 0, 0], [2, 2, 2, 0, 1], [0, 0, 0, 0, 0]])
def test_pytorch_module_has_the_loss_s_gradient_where_logits_tie(exported, twin, row):
    loss, _ = exported
    logits, labels = jnp.tile(jnp.asarray(row, jnp.float32), (5, 1)), jnp.arange(5)
    expected = jax.grad(lambda x: loss(x, labels).sum())(logits)
    for y in (torch.arange(5), torch.eye(5)):
        x = torch.tensor(np.asarray(logits), requires_grad=True)
        twin(x, y).sum().backward()
        np.testing.assert_allclose(x.grad, expected, rtol=1e-5, atol=1e-6)


def test_pytorch_module_refuses_other_files(exported, tmp_path):
    _, folder = exported
    content = (folder / "loss.safetensors").read_bytes()
    path = tmp_path / "loss.safetensors"
    bad = {
        "empty": b"",
        "short": content[:20],
        "no header": b"\xff" * 64,
        "a header longer than the file": (2**40).to_bytes(8, "little") + content[8:],
        "another format": content.replace(b"EvolvedLoss/1", b"EvolvedLoss/9"),
        "cut by a number": content[:-4],
        "too long": content + bytes(4),
        "another activation": content.replace(b"squareplus", b"softplus  ").replace(
            b"silu", b"tanh"
        ),
    }
    (tmp_path / "evolved_loss.py").write_bytes((folder / "evolved_loss.py").read_bytes())
    for other in bad.values():
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"loss\.safetensors is no loss file: "):
            torch_loss(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"loss\.safetensors is no loss file: .*No such file"):
        torch_loss(tmp_path)


def test_pytorch_module_takes_no_flipped_bit(exported, tmp_path):
    _, folder = exported
    content = (folder / "loss.safetensors").read_bytes()
    (tmp_path / "evolved_loss.py").write_bytes((folder / "evolved_loss.py").read_bytes())
    for bit in np.random.default_rng(0).choice(8 * len(content), 300, replace=False).tolist():
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "loss.safetensors").write_bytes(flipped)
        with pytest.raises(ValueError, match=r"loss\.safetensors is no loss file: "):
            torch_loss(tmp_path)


NO_ARCHITECTURES = {
    "a number": "5",
    "nothing": "null",
    "a list": "[]",
    "no JSON": "{",
    "too deep": "[" * 10**5,
    "without widths": '{"activation": "silu", "num_classes": null}',
    "without a class count": '{"activation": "silu", "hidden": [16, 16]}',
    "widths that are none": '{"activation": "silu", "hidden": 16, "num_classes": null}',
    "an unknown activation": '{"activation": "gelu", "hidden": [16, 16], "num_classes": null}',
    "a layer less": '{"activation": "silu", "hidden": [16], "num_classes": null}',
    "a layer more": '{"activation": "silu", "hidden": [16, 16, 16], "num_classes": null}',
    "other widths": '{"activation": "silu", "hidden": [16, 4], "num_classes": null}',
}


@pytest.mark.parametrize("case", [*NO_ARCHITECTURES, "missing"])
def test_pytorch_module_refuses_another_architecture(case, tmp_path):
    export_loss(random_loss(0), tmp_path)
    if case == "missing":

        def change(header):
            return {name: x for name, x in header.items() if name != "architecture"}
    else:

        def change(header):
            return header | {"architecture": NO_ARCHITECTURES[case]}

    rewritten(tmp_path / "loss.safetensors", change, signed=True)
    with pytest.raises(ValueError, match=r"loss\.safetensors is no loss file: (?!its sha256)"):
        torch_loss(tmp_path)


def test_pytorch_module_takes_logits_and_soft_labels_of_8_bits(twin):
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        narrow = X.to(dtype)
        found = twin(narrow, Y)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), twin(narrow.float(), Y).to(dtype).float())
        one_hot = torch.nn.functional.one_hot(Y, 5).to(dtype)
        torch.testing.assert_close(twin(X, one_hot), twin(X, Y))


def test_pytorch_module_reads_from_the_home_folder(exported, monkeypatch):
    monkeypatch.setenv("HOME", str(exported[1]))
    module = type(torch_loss(exported[1]))
    assert module("~/loss.safetensors")(X, Y).isfinite().all()
