import functools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import loss_overhead, train_throughput, training_work
from benchmarks.flops import product_flops, training_flops
from benchmarks.peers import torch_loops
from benchmarks.training_work import TrainWork, functions_of, our_run, our_training, patch
from edl_jax.models import MODELS, layers
from edl_jax.models.resnet import ResNet
from edl_jax.training import programs
from edl_jax.training.optimizers import MODEL
from edl_jax.training.steps import TrainState

# One block only: compiling takes most of these tests' time.
TINY = TrainWork("tiny", 8, width=4, image_size=8)
# PyTorch, where it is installed, warns at import of what is no concern of ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", functools.partial(ResNet, (1,), width=8))
    monkeypatch.setattr(training_work, "QUICK", TINY)


def test_flops_of_a_network_counted_by_hand():
    stem = 8 * 8 * 4 * (3 * 3 * 3)
    first = 2 * 8 * 8 * 4 * (3 * 3 * 4)
    second = 4 * 4 * 8 * (3 * 3 * 4) + 4 * 4 * 8 * (3 * 3 * 8)
    third = 2 * 2 * 16 * (3 * 3 * 8) + 2 * 2 * 16 * (3 * 3 * 16)
    head = 16 * 10
    forward = 2 * 2 * (stem + first + second + third + head)
    work = TrainWork("resnet8", 2, width=4, image_size=8)
    assert work.flops == 3 * forward - 2 * 2 * stem


def test_flops_of_products_inside_loops_and_functions():
    x, w = jnp.ones((3, 4)), jnp.ones((4, 4))

    @jax.jit
    def twice(x):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.matmul)(x, w), None), x, length=2)[0]

    assert product_flops(twice, x) == [2 * 3 * 4 * 4] * 2
    batched = product_flops(jax.vmap(jnp.matmul), jnp.ones((5, 3, 4)), jnp.ones((5, 4, 2)))
    assert batched == [5 * 2 * 3 * 4 * 2]
    image, kernel = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 2, 8))  # two groups
    grouped = product_flops(
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        ),
        image,
        kernel,
    )
    assert grouped == [2 * 6 * 6 * 8 * 3 * 3 * 2]
    with pytest.raises(NotImplementedError, match="while"):
        product_flops(lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x), x)
    assert training_flops([5, 7]) == 5 * 2 + 7 * 3


def test_throughput_writes_its_table_and_resumes(tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path)]
    train_throughput.main(arguments)
    rows = json.loads((tmp_path / "train_throughput.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"ok"}
    assert rows[0]["contestant"] == "edl_jax"
    assert rows[0]["flops"] == TINY.flops
    table = (tmp_path / "train_throughput.md").read_text()
    assert f"| edl_jax | {train_throughput.number(8 / rows[0]['median_s'])} |" in table
    said = capsys.readouterr().out
    assert "XLA's weight gradients" in said
    assert torch_loops.missing() is None or "pip install torch" in said
    cells = (tmp_path / "metrics.jsonl").read_text()
    train_throughput.main(arguments)
    assert (tmp_path / "metrics.jsonl").read_text() == cells
    assert "finished before" in capsys.readouterr().out


def test_overhead_writes_its_tables_and_resumes(tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path)]
    loss_overhead.main(arguments)
    rows = json.loads((tmp_path / "loss_overhead.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"ok"}
    evolved = [row for row in rows if row["loss"] == loss_overhead.EVOLVED]
    assert [row["table"] for row in evolved] == [
        "step of tiny, batch 8",
        "8 examples, 10 classes, float32",
    ]
    for row in evolved:
        assert f"| {row['ratio']:.3f} |" in (tmp_path / "loss_overhead.md").read_text()
    cells = (tmp_path / "metrics.jsonl").read_text()
    loss_overhead.main(arguments)
    assert (tmp_path / "metrics.jsonl").read_text() == cells
    assert capsys.readouterr().out.count("finished before") == 2


def test_runs_stay_within_epochs_and_tell_the_mean_loss():
    counts = []

    def advance(state, key, count):
        before = state.step % 5 and state.loss_sum
        counts.append((state.step % 5, count))
        return state._replace(step=state.step + count, loss_sum=before + 2.0 * count)

    state = TrainState(*[None] * 5, step=0, loss_sum=0.0, correct=0, failed_step=-1)
    functions = mock.Mock(init=lambda key: state, advance=advance, steps_per_epoch=5)
    run = our_run(functions, 3)
    assert [run(1), run(2), run(1)] == [2.0] * 3
    assert counts == [(0, 3), (3, 2), (0, 4), (4, 1), (0, 2)]


def test_patches_last_while_a_training_is_built_and_run(monkeypatch):
    seen = []

    def run_of(functions, steps):
        return lambda count: seen.append((functions, programs.on_cpu(None)))

    monkeypatch.setattr(training_work, "functions_of", lambda *_: programs.on_cpu(None))
    monkeypatch.setattr(training_work, "our_run", run_of)
    original = programs.on_cpu
    our_training(TINY, 1, patched=patch(programs, "on_cpu", lambda mesh: "no"))()(1)
    assert seen == [("no", "no")]
    assert programs.on_cpu is original


@pytest.mark.skipif(not hasattr(layers, "convolve"), reason="convolutions are XLA's own")
def test_xla_s_weight_gradients_can_be_put_back():
    with patch(layers, "convolve", jax.lax.conv_general_dilated)():
        model = nnx.eval_shape(lambda: MODELS["tiny"](rngs=nnx.Rngs(0)))
    assert model.stem.conv.conv_general_dilated is jax.lax.conv_general_dilated


def test_ratios_of_turns_leave_out_what_slows_both():
    rng = np.random.default_rng(1)
    drift = np.repeat([1.0, 3.0], 20)
    below = drift * rng.uniform(0.99, 1.01, 40)
    ratio, low, high = loss_overhead.ratio_interval(list(1.2 * below), list(below))
    assert ratio == pytest.approx(low) == pytest.approx(high) == pytest.approx(1.2)
    noisy = 1.2 * rng.uniform(0.9, 1.1, 40)
    ratio, low, high = loss_overhead.ratio_interval(list(noisy), list(below[:20]))
    assert low < ratio < high
    assert ratio == pytest.approx(np.median(noisy[:20]) / np.median(below[:20]))


def test_losses_alone_are_the_mean_and_its_gradient():
    optax_loss = loss_overhead.losses_of(quick=True)[loss_overhead.CROSS_ENTROPY]
    value, gradient = loss_overhead.alone(optax_loss, (4, 3), "bfloat16")()(2)
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
    functions, key = functions_of(work, work.config()), jax.random.key(0)
    state = functions.init(key)
    network = torch_training.network_of(work)
    network.load_state_dict(to_torch(state.params[MODEL]), strict=False)
    run = torch_training.trainer(work, network, bfloat16=False, compiled=False)
    losses = []
    for _ in range(4):
        state = functions.advance(state, key, 1)
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
