import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import generations, gradient_fit, ours, population_throughput, scaling, variants
from benchmarks.common import Work, parser, random_layers
from benchmarks.grid import arguments_of, batch_of, run_grid
from benchmarks.peers import PEERS, evosax_loop, numpy_loop, torch_loops
from benchmarks.timing import Limits, Subject, measure
from edl_jax.evolution.engine import make_evolution
from edl_jax.networks import ACTIVATIONS
from edl_jax.objective import SEVERITIES
from edl_jax.pairs import log_probabilities
from edl_jax.runs.folder import RunFolder
from edl_jax.studies.ablation.seeds import keys_of, make_seed_runs

WORK = Work(population_size=32, num_pairs=64)
BY_NAME = {peer.name: peer for peer in PEERS}
# PyTorch and EvoTorch, where they are installed, warn at import of what is no concern of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def pairs():
    (found,) = make_evolution(WORK.config()).sample(jax.random.key(0))
    return found


def observed(found):
    network = WORK.config().architecture().build(jax.random.key(0))
    log_p = log_probabilities(found.probabilities)
    features = network.features(log_p, found.labels)
    severities = SEVERITIES["surprisal"](log_p, found.labels)
    return np.asarray(features), np.asarray(severities)


def skip_if_missing(peer):
    if reason := peer.missing():
        pytest.skip(reason)


def fitness_of_ours(work, layers, features, severities):
    made = make_evolution(work.config())
    batch = made.observe(jax.random.key(1), made.sample(jax.random.key(0)))
    batch = batch._replace(features=jnp.asarray(features), severities=jnp.asarray(severities))
    return np.asarray(made.score(ours.population_of(work, layers), batch))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("name", ["evosax SimpleGA loop", "torch batched", "torch vmap", "NumPy"])
def test_peers_score_as_we_do(name, activation):
    skip_if_missing(BY_NAME[name])
    work = Work(WORK.population_size, WORK.num_pairs, activation=activation)
    layers = random_layers(work)
    features, severities = observed(pairs())
    expected = fitness_of_ours(work, layers, features, severities)
    found = BY_NAME[name].evaluation(work, layers, features, severities)(1)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-5)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("name", [name for name in BY_NAME if name.startswith(("torch", "Evo"))])
def test_every_pytorch_peer_scores_as_we_do(name):
    skip_if_missing(BY_NAME[name])
    layers = random_layers(WORK)
    features, severities = observed(pairs())
    expected = fitness_of_ours(WORK, layers, features, severities)
    found = BY_NAME[name].evaluation(WORK, layers, features, severities)(2)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-5)


def test_our_subject_scores_as_our_engine():
    layers = random_layers(WORK)
    features, severities = observed(pairs())
    found = ours.evaluation(WORK, layers, features, severities)(1)
    expected = fitness_of_ours(WORK, layers, features, severities)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_peers_observe_as_we_do():
    found = pairs()
    probabilities, labels = np.asarray(found.probabilities), np.asarray(found.labels)
    for seen in (numpy_loop.observe(probabilities, labels), evosax_loop.observe(*found[:2])):
        for ours_, theirs in zip(observed(found), seen, strict=True):
            np.testing.assert_allclose(theirs, ours_, rtol=1e-5, atol=1e-6)


def test_pytorch_observes_as_we_do():
    torch = pytest.importorskip("torch")
    found = pairs()
    where = torch_loops.device()
    seen = torch_loops.observe(
        torch.tensor(np.asarray(found.probabilities), device=where),
        torch.tensor(np.asarray(found.labels), dtype=torch.int64, device=where),
    )
    for ours_, theirs in zip(observed(found), seen, strict=True):
        np.testing.assert_allclose(theirs.cpu(), ours_, rtol=1e-5, atol=1e-6)


def sampled_by(name, num_pairs):
    if name == "numpy":
        return numpy_loop.sample(np.random.default_rng(0), num_pairs, 10)
    if name == "evosax":
        return evosax_loop.sample(jax.random.key(0), num_pairs, 10)
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return [x.cpu().numpy() for x in torch_loops.sample(num_pairs, 10)]


@pytest.mark.parametrize("name", ["numpy", "evosax", "torch"])
def test_peers_draw_from_our_distribution(name):
    num_pairs = 20_000
    config = Work(4, num_pairs).config()
    (found,) = make_evolution(config).sample(jax.random.key(0))
    theirs = [np.asarray(x) for x in sampled_by(name, num_pairs)]

    def moments(probabilities, labels):
        own = np.take_along_axis(np.asarray(probabilities), np.asarray(labels)[:, None], 1)
        return np.mean(own), np.mean(np.max(probabilities, 1)), np.mean(labels), np.std(own)

    # Four standard errors of the difference of two means of values in [0, 1], labels in [0, 9].
    difference = np.subtract(moments(*theirs), moments(*found[:2]))
    assert (np.abs(difference) < [0.02, 0.02, 0.12, 0.02]).all(), difference


@pytest.mark.parametrize("peer", [ours.EDL_JAX, *PEERS], ids=lambda peer: peer.name)
def test_generations_run(peer):
    skip_if_missing(peer)
    run = peer.generations(WORK, 0)
    run(1)
    run(2)


def test_work_is_counted_right():
    work = Work(3, 7, hidden=(16, 16))
    assert work.num_parameters == sum(k[0].size + b[0].size for k, b in random_layers(work)) == 385
    assert work.flops == 3 * 7 * 2 * (5 * 16 + 16 * 16 + 16)
    assert work.activations == 3 * 7 * 32


def test_what_cannot_be_measured_is_said(capsys):
    def fails():
        raise ValueError("no luck\nat all")

    def sleeps(count):
        import time

        time.sleep(0.05 * count)

    limits = Limits(repeats=3, cell_seconds=1, memory_bytes=100, repeat_seconds=0.001)
    rows = measure(
        [
            Subject("fine", lambda: sleeps, unit=5),
            Subject("big", lambda: sleeps, peak_bytes=101),
            Subject("slow", lambda: sleeps, predicted_seconds=2.0),
            Subject("broken", fails),
        ],
        limits,
    )
    assert rows["fine"]["status"] == "ok"
    assert len(rows["fine"]["seconds"]) == 3
    assert 0.01 <= rows["fine"]["q1_s"] <= rows["fine"]["median_s"] <= rows["fine"]["q3_s"]
    assert "out of memory" in rows["big"]["status"]
    assert "2 s" in rows["slow"]["status"]
    assert rows["broken"]["status"] == "failed (ValueError: no luck)"
    assert measure([Subject("slow", lambda: sleeps)], limits._replace(cell_seconds=0.01))["slow"][
        "status"
    ].startswith("skipped (one run took")


@pytest.mark.parametrize("benchmark", [population_throughput, generations, scaling])
def test_quick_mode_writes_table_and_plot_and_resumes(benchmark, tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path)]
    benchmark.main(arguments)
    name = benchmark.__name__.split(".")[-1]
    table = (tmp_path / f"{name}.md").read_text()
    assert "|---" in table
    assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert rows
    measured = [row["generation"] if benchmark is scaling else row for row in rows]
    assert {row["status"] for row in measured} == {"ok"}
    cells = (tmp_path / "metrics.jsonl").read_text()
    assert all(json.loads(line) for line in cells.splitlines())
    capsys.readouterr()
    benchmark.main(arguments)
    assert (tmp_path / "metrics.jsonl").read_text() == cells
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main([*arguments, "--activation", "relu"])
    assert "--fresh" in capsys.readouterr().out


def test_variants_evaluate_the_same_networks():
    work = Work(8, 64)
    found = {s.name: s.prepare()(2) for s in variants.subjects_of(work) if "relu" not in s.name}
    same = {name: x for name, x in found.items() if not set(ACTIVATIONS) & set(name.split())}
    assert len(same) >= 7
    layers, (features, _) = random_layers(work), batch_of(work)
    hidden = np.broadcast_to(features, (8, *features.shape))
    for index, (kernel, bias) in enumerate(layers):
        if index:
            hidden = hidden / (1 + np.exp(-hidden))
        hidden = np.einsum("nfh,nfp->nhp", kernel, hidden) + bias[..., None]
    expected = np.logaddexp(hidden[:, 0], 0).mean(-1)
    for name, means in same.items():
        np.testing.assert_allclose(means, expected, rtol=2e-5, err_msg=name)


def test_variants_write_their_table(tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path), "--activation", "relu"]
    variants.main(arguments)
    assert "| 16 networks at a time, silu |" in (tmp_path / "variants.md").read_text()
    rows = json.loads((tmp_path / "variants.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"ok"}
    capsys.readouterr()
    variants.main(arguments)
    assert "finished before" in capsys.readouterr().out


def test_gradients_fit_a_pair_network_from_where_evolution_starts():
    config = dataclasses.replace(gradient_fit.BASE, pairs_per_generation=64, held_out_pairs=512)
    runs, keys = make_seed_runs(config, 2), keys_of([0, 1])
    begun = runs.measure(keys, runs.leaders(runs.init(keys)))
    fitted = runs.measure(keys, gradient_fit.fit(config, runs, keys, 1000))
    for before, after in zip(begun, fitted, strict=True):
        assert after["objective"] < 0.8 * before["objective"]
        assert after["pairwise_accuracy"] > before["pairwise_accuracy"]


def test_the_parser_knows_the_shared_arguments():
    found = parser("x", None).parse_args(["--quick", "--out", "here"])
    assert found.quick
    assert found.out == Path("here")
    assert found.activation == "silu"


def test_fresh_deletes_nothing_of_another_run(tmp_path, capsys):
    RunFolder(tmp_path, {"train": {}})
    with pytest.raises(SystemExit):
        generations.main(["--quick", "--fresh", "--out", str(tmp_path)])
    assert "is the folder of another run" in capsys.readouterr().out
    assert (tmp_path / "config.json").exists()


def test_contestants_measured_alone_have_a_folder_of_their_own(tmp_path, capsys):
    def run(*names):
        flags = ["--quick", "--out", str(tmp_path), "--only", *names]
        run_grid("toy", arguments_of("toy", None, flags), [], lambda *_: None)

    run("edl_jax", "NumPy")
    run("edl_jax", "NumPy")
    with pytest.raises(SystemExit):
        run("NumPy")
    assert "only is ['edl_jax', 'NumPy'] there and ['NumPy'] here" in capsys.readouterr().out
