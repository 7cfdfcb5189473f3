"""Small pretrainings: keys, kinds of network, the run folder. What is evolved hardly matters."""

import dataclasses
import json
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import SEVERITIES, pretrain
from edl_jax.errors import ConfigError, InputError, RunFolderError
from edl_jax.evolution import pretraining, problems
from edl_jax.evolution.problems import RankingProblem
from edl_jax.pairs import sample_pairs
from tests.event_files import shown
from tests.test_evolution import TINY, evolution_of
from tests.test_evolved_loss import random_loss


def same_params(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_same_key_same_loss_bit_for_bit(tiny_pretraining):
    first, same = tiny_pretraining[1], pretrain(TINY, key=jax.random.key(TINY.seed))
    assert same_params(first.loss, same.loss)
    np.testing.assert_array_equal(first.history["best_fitness"], same.history["best_fitness"])
    assert first.metrics == same.metrics
    other = pretrain(dataclasses.replace(TINY, seed=6))
    assert not same_params(first.loss, other.loss)


def test_a_seed_evolves_what_it_did_in_version_0_2_0():
    """Up to rounding. To change these numbers is to change what every seed evolves."""
    history = pretrain(TINY).history
    best = [0.95692128, 0.93184805, 0.92040366, 0.88333964, 0.77465242]
    mean = [1.00354600, 0.97437811, 0.94760931, 0.93131727, 0.89280540]
    np.testing.assert_allclose(history["best_fitness"], best, rtol=1e-4)
    np.testing.assert_allclose(history["mean_fitness"], mean, rtol=1e-4)


def test_what_is_drawn_of_one_key_is_drawn_by_keys_of_its_own(monkeypatch):
    """No key that is drawn by is another one, or one that drawing by it splits off."""
    key, used = jax.random.key(0), []

    def recorded(result):
        def record(key, *_, **__):
            used.append(key)
            return result

        return record

    pairs = sample_pairs(key, 65, 3)
    config = dataclasses.replace(TINY, class_counts=(3, 5))
    evolution, ranking = evolution_of(config), RankingProblem(config)
    state = jax.tree.map(jnp.zeros_like, evolution.begin(key))
    monkeypatch.setattr(problems, "sample_pairs", recorded(pairs))
    monkeypatch.setattr(jax.random, "permutation", recorded(jnp.arange(130)))
    monkeypatch.setattr(pretraining, "draw_tasks", recorded(None))
    monkeypatch.setattr(pretraining, "task_errors", lambda *_: jnp.zeros((1, 1)))

    def of_choice():
        evolution.best(state, key, 3)
        ranking.held_out_pairs(key)

    def of_measurement():
        ranking.batch(key, ranking.pairs(key))
        ranking.held_out_pairs(key)
        pretraining._errors_on_tasks(random_loss(), config, key)

    for draw, number in ((of_choice, 3 * (2 + 1) + 2 * 2), (of_measurement, 2 + 1 + 2 * 2 + 8)):
        used.clear()
        with jax.disable_jit():
            draw()
        assert len(used) == number
        split_off = [each for key in used for each in jax.random.split(key, 8)]
        met = jax.random.key_data(jnp.stack([*used, *split_off]))
        assert len(np.unique(met, axis=0)) == len(met)


@pytest.mark.parametrize("key", [0, np.zeros(2, np.uint32)], ids=str)
def test_refuses_what_is_no_key(key):
    with pytest.raises(InputError, match=r"expected a key such as jax.random.key\(0\)"):
        pretrain(TINY, key=key)


def test_a_severity_that_ranks_nothing_is_refused():
    with mock.patch.dict(SEVERITIES):
        SEVERITIES.register("flat")(lambda log_p, labels: jnp.zeros(labels.shape))
        with pytest.raises(ConfigError, match="severity is 'flat', equal for all pairs"):
            pretrain(dataclasses.replace(TINY, severity="flat"))


def test_a_pair_network_is_evolved_for_its_class_count():
    config = dataclasses.replace(TINY, network="pair", class_counts=(4,))
    loss = pretrain(config).loss
    assert loss.architecture.num_classes == 4
    assert loss(jax.numpy.zeros((2, 4)), jax.numpy.asarray([0, 3])).shape == (2,)


def test_run_folder_holds_config_versions_metrics_and_loss(tmp_path, tiny_pretraining):
    run_dir, result = tiny_pretraining
    shutil.copytree(run_dir, tmp_path, dirs_exist_ok=True)
    assert json.loads((tmp_path / "config.json").read_text())["pretrain"]["generations"] == 5
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["generation"] for row in rows] == list(range(5))
    assert json.loads((tmp_path / "results.json").read_text()) == result.metrics
    found = shown(tmp_path)
    for row in rows:
        for name in ("best_fitness", "step_size"):
            assert found[row["generation"], name] == pytest.approx(row[name], rel=1e-6)
    last = result.held_out["pairwise_accuracy"][-1]
    assert found[4, "held_out/pairwise_accuracy"] == pytest.approx(last, rel=1e-6)
    assert '"generations": 5' in found[0, "config/text_summary"]
    assert same_params(type(result.loss).load(tmp_path / "loss.safetensors"), result.loss)

    with pytest.raises(RunFolderError, match=r"pretrain\.generations is 5 there and 9 here"):
        pretrain(dataclasses.replace(TINY, generations=9), run_dir=tmp_path)
    with pytest.raises(RunFolderError, match="key is"):
        pretrain(TINY, key=jax.random.key(99), run_dir=tmp_path)
    # Again: what is damaged is made again.
    path = tmp_path / "held_out.jsonl"
    lines = path.read_text()
    path.write_text(lines[:-9])
    (tmp_path / "loss.safetensors").unlink()
    (tmp_path / "loss.safetensors").mkdir()
    with pytest.raises(RunFolderError, match=r"loss\.safetensors could not be written"):
        pretrain(TINY, run_dir=tmp_path)
    (tmp_path / "loss.safetensors").rmdir()
    assert same_params(pretrain(TINY, run_dir=tmp_path).loss, result.loss)
    assert path.read_text() == lines
    path.unlink()
    with pytest.raises(RunFolderError, match=r"step 5 is unused .*held_out\.jsonl are not"):
        pretrain(TINY, run_dir=tmp_path)
