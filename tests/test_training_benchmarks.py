import functools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import loss_overhead, train_throughput, training_work
from benchmarks.peers import torch_loops
from benchmarks.report import number
from benchmarks.training_work import TrainWork, our_run, our_training, trainer_of
from edl_jax.models import MODELS, layers
from edl_jax.models.resnet import ResNet
from edl_jax.training.optimizers import MODEL
from edl_jax.training.state import TrainState

# One block only: compiling takes most of these tests' time.
TINY = TrainWork("tiny", 8, width=4, image_size=8)
# PyTorch, where it is installed, warns at import of what is no concern of ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", functools.partial(ResNet, (1,), width=8))
    for module in (train_throughput, loss_overhead):
        monkeypatch.setattr(module, "works", lambda quick: [TINY])


def test_operations_of_a_step_are_about_those_counted_by_hand():
    stem = 32 * 32 * 16 * (3 * 3 * 3)
    first = 2 * 32 * 32 * 16 * (3 * 3 * 16)
    second = 16 * 16 * 32 * (3 * 3 * 16) + 16 * 16 * 32 * (3 * 3 * 32)
    third = 8 * 8 * 64 * (3 * 3 * 32) + 8 * 8 * 64 * (3 * 3 * 64)
    forward = 2 * (stem + first + second + third + 64 * 10)
    # Those that meet padding do not count, and batch norm does.
    assert TrainWork("resnet8", 2).flops == pytest.approx(2 * 3 * forward, rel=0.1)


def test_throughput_writes_its_table(tmp_path, capsys):
    train_throughput.main(["--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "train_throughput.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"ok"}
    assert rows[0]["name"] == "edl_jax"
    assert rows[0]["amounts"]["GFLOP/s"] == TINY.flops / 1e9
    (line,) = (
        x for x in (tmp_path / "train_throughput.md").read_text().splitlines() if "| edl_jax |" in x
    )
    assert f"| {number(8 / rows[0]['median_s'])} |" in line
    said = capsys.readouterr().out
    assert "XLA's weight gradients" in said
    assert torch_loops.missing() is None or "pip install torch" in said


@pytest.mark.parametrize("kind", ["NVIDIA H200", "NVIDIA A100-SXM4-80GB"])
def test_the_peak_is_that_of_the_data_sheet_where_it_is_known(kind, monkeypatch):
    measured, source = train_throughput.peak_flops("float32", quick=True)
    assert 1e8 < measured < 1e14
    assert "measured in the same run" in source
    monkeypatch.setattr(jax, "devices", lambda: [mock.Mock(device_kind=kind)])
    peak, source = train_throughput.peak_flops("bfloat16")
    assert peak == (989e12 if "H200" in kind else 312e12)
    assert "data sheet" in source


def test_pytorch_without_a_gpu_takes_no_part_beside_one(monkeypatch):
    pytest.importorskip("torch")
    assert torch_loops.missing() is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch_loops, "device", lambda: "cpu")
    assert "no GPU" in torch_loops.missing()
    monkeypatch.setattr(torch_loops, "device", lambda: "cuda")
    assert torch_loops.missing() is None


def test_overhead_writes_its_tables(tmp_path):
    loss_overhead.main(["--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "loss_overhead.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"ok"}
    evolved = [row["part"] for row in rows if row["name"] == loss_overhead.EVOLVED]
    assert evolved == ["step of tiny, batch 8", "8 examples, 10 classes, float32"]
    page = (tmp_path / "loss_overhead.md").read_text()
    assert page.count(f"time / {loss_overhead.CROSS_ENTROPY}") == 2


def test_runs_stay_within_epochs_and_tell_the_mean_loss():
    counts = []

    def advance(state, key, count):
        before = state.step % 5 and state.loss_sum
        counts.append((state.step % 5, count))
        return state._replace(step=state.step + count, loss_sum=before + 2.0 * count)

    state = TrainState(*[None] * 5, step=0, loss_sum=0.0, correct=0, failed_step=-1)
    trainer = mock.Mock(init=lambda key: state, take_steps=advance, period=5)
    run = our_run(trainer, 3)
    assert [run(1), run(2), run(1)] == [2.0] * 3
    assert counts == [(0, 3), (3, 2), (0, 4), (4, 1), (0, 2)]


def test_xla_s_weight_gradients_are_those_of_its_own_convolutions(monkeypatch):
    assert layers.convolve is not jax.lax.conv_general_dilated
    seen = []

    def trainer_of(*_):
        model = nnx.eval_shape(lambda: MODELS["tiny"](rngs=nnx.Rngs(0)))
        seen.append(model.stem.conv.conv_general_dilated)

    monkeypatch.setattr(training_work, "trainer_of", trainer_of)
    monkeypatch.setattr(training_work, "our_run", lambda trainer, steps: lambda count: None)
    for xla_gradients in (True, False):
        our_training(TINY, 1, xla_gradients=xla_gradients)()
    assert seen == [jax.lax.conv_general_dilated, layers.convolve]


def test_losses_alone_are_the_mean_and_its_gradient():
    optax_loss = loss_overhead.losses_of(few=True)[loss_overhead.CROSS_ENTROPY]
    value, gradient = loss_overhead.alone(optax_loss, (4, 3), "bfloat16")(2)
    rng = np.random.default_rng(0)
    logits = np.asarray(jnp.asarray(3 * rng.standard_normal((4, 3)), "bfloat16"), np.float64)
    labels = rng.integers(0, 3, 4)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, -np.log(p[range(4), labels]).mean(), rtol=2e-2)
    assert gradient.dtype == jnp.bfloat16
    expected = (p - np.eye(3)[labels]) / 4
    np.testing.assert_allclose(np.asarray(gradient, np.float64), expected, atol=5e-3)


def test_pytorch_takes_the_same_steps():
    pytest.importorskip("torch")
    from benchmarks.peers import torch_training
    from tests.torch_reference import to_torch

    # One batch an epoch: the mean loss and its gradient do not depend on the order.
    work = TrainWork("tiny", 8, width=4, image_size=8, num_batches=1, augmented=False)
    trainer, key = trainer_of(work, work.config()), jax.random.key(0)
    state = trainer.init(key)
    network = torch_training.network_of(work)
    network.load_state_dict(to_torch(state.params[MODEL]), strict=False)
    run = torch_training.trainer(work, network, bfloat16=False, compiled=False)
    losses = []
    for _ in range(4):
        state = trainer.take_steps(state, key, 1)
        losses.append(float(state.loss_sum))
        assert run(1) == pytest.approx(losses[-1], rel=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    theirs = dict(network.named_parameters())
    for name, value in to_torch(state.params[MODEL]).items():
        found = theirs[name].detach().cpu().numpy()
        np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_pytorch_crops_and_mirrors_each_image_by_itself():
    torch = pytest.importorskip("torch")
    from benchmarks.peers.torch_training import augment

    torch.manual_seed(0)
    image = np.arange(1, 5 * 4 * 3 + 1, dtype=np.uint8).reshape(5, 4, 3)
    found = augment(torch.tensor(np.stack([image] * 2000)), 1).numpy()
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    counts = {}
    for top in range(3):
        for left in range(3):
            crop = padded[top : top + 5, left : left + 4]
            for one in (crop, crop[:, ::-1]):
                is_one = (found == one).all((1, 2, 3))
                counts[top, left, one is crop] = is_one.sum()
    assert sum(counts.values()) == 2000
    # 18 choices, each with a mean of 111 and a standard deviation of 10.2.
    assert min(counts.values()) > 60
    assert max(counts.values()) < 162
