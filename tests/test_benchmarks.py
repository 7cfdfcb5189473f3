import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import against, against_worker, gpu, ours, population_throughput
from benchmarks.common import Work, flattened, random_layers, unflattened
from benchmarks.peers import PEERS, evosax_loop, torch_loops
from edl_jax.evolution.problems import PairFeatures, RankingProblem
from edl_jax.objective import SEVERITIES
from edl_jax.pairs import log_probabilities

WORK = Work(population_size=32, num_pairs=64)
# PyTorch and EvoTorch, where they are installed, warn at import of what is no concern of ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def pairs():
    (found,) = RankingProblem(WORK.config()).pairs(jax.random.key(0))
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
    batch = PairFeatures(jnp.asarray(features), jnp.asarray(severities))
    problem = RankingProblem(work.config())
    return np.asarray(problem.scores(ours.population_of(work, layers), batch))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peers_score_as_we_do(peer):
    skip_if_missing(peer)
    layers = random_layers(WORK)
    features, severities = observed(pairs())
    expected = fitness_of_ours(WORK, layers, features, severities)
    found = peer.evaluation(WORK, layers, features, severities)(2)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-5)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("contestant", [ours.EDL_JAX, ours.MANY_AT_A_TIME])
def test_our_subject_scores_as_our_engine(contestant):
    layers = random_layers(WORK)
    features, severities = observed(pairs())
    found = contestant.evaluation(WORK, layers, features, severities)(1)
    expected = fitness_of_ours(WORK, layers, features, severities)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_peers_observe_as_we_do():
    found = pairs()
    for ours_, theirs in zip(observed(found), evosax_loop.observe(*found[:2]), strict=True):
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
    if name == "evosax":
        return evosax_loop.sample(jax.random.key(0), num_pairs, 10)
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return [x.cpu().numpy() for x in torch_loops.sample(num_pairs, 10)]


@pytest.mark.parametrize("name", ["evosax", "torch"])
def test_peers_draw_from_our_distribution(name):
    num_pairs = 20_000
    config = Work(4, num_pairs).config()
    (found,) = RankingProblem(config).pairs(jax.random.key(0))
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
    layers = random_layers(work)
    assert work.num_parameters == sum(k[0].size + b[0].size for k, b in layers) == 385
    assert work.flops == 3 * 7 * 2 * (5 * 16 + 16 * 16 + 16)
    jax.tree.map(np.testing.assert_array_equal, unflattened(flattened(layers), work.sizes), layers)


def written(benchmark, folder, *arguments):
    """The rows and the page that a benchmark writes in its quick mode."""
    benchmark.main([*arguments, "--quick", "--out", str(folder)])
    (data,) = folder.glob("*.json")
    return json.loads(data.read_text())["rows"], data.with_suffix(".md").read_text()


def test_population_throughput_writes_its_tables(tmp_path):
    rows, page = written(population_throughput, tmp_path)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["part"].partition(",")[0] for row in rows} == {"evaluation", "generation"}
    assert {row["name"] for row in rows} >= {"edl_jax", "evosax SimpleGA loop"}
    assert "| generation, 16 networks × 128 pairs |" in page


def test_the_gpu_script_runs_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "CHOSEN", (evosax_loop.EVOSAX.name, "torch batched by 16"))
    rows, page = written(gpu, tmp_path)
    assert {row["status"] for row in rows} == {"ok"}
    data = json.loads((tmp_path / "gpu.json").read_text())
    named = ("training step", "step", "generation", "8 examples", "evaluation")
    assert [
        x for x, begin in zip(data["parts"], named, strict=True) if not x.startswith(begin)
    ] == []
    assert {result.partition(";")[0] for *_, result in data["parts"].values()} == {"measured"}
    assert {"commit", "command", "device", "versions"} <= set(data["environment"])
    assert page.count("| edl_jax, 1,024 networks at a time |") == 2


def test_the_gpu_script_wants_a_gpu_and_keeps_to_its_time(tmp_path):
    with pytest.raises(SystemExit, match="JAX sees no GPU"):
        gpu.main(["--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    rows, page = written(gpu, tmp_path, "--seconds", "0")
    assert rows == []
    assert page.count("skipped: ") == 5


def test_the_gpu_script_ends_where_a_part_hangs(tmp_path):
    hangs = "from benchmarks import gpu; import time; gpu.GRACE = 1; "
    hangs += "gpu.parts_and_notes = lambda quick: time.sleep(100); "
    hangs += f"gpu.main(['--quick', '--seconds', '1', '--out', {str(tmp_path)!r}])"
    done = subprocess.run([sys.executable, "-c", hangs], capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_a_checkout_is_measured_beside_another(tmp_path, capsys):
    rows, page = written(against, tmp_path, str(against.ROOT))
    assert [len(row["seconds"]) for row in rows] == [2] * 4
    assert "images/s" in page
    assert "generations/s" in page
    with pytest.raises(SystemExit, match="expected a folder with a checkout"):
        against.main([str(tmp_path)])


def test_another_checkout_runs_the_default_configuration():
    _, unit, _, items, prepare = next(against_worker.settings(quick=False))
    assert (unit, items) == ("generations/s", 16)
    config = prepare.args[0].config()
    assert (config.population_size, config.pairs_per_generation) == (256, 4096)
    assert config == type(config)()
