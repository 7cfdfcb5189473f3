import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from edl_jax import EvolvedLoss, cli
from edl_jax.errors import ConfigError, LossFileError
from edl_jax.networks import Architecture
from edl_jax.pairs import Pairs
from edl_jax.studies import CardConfig, card, shape


def own_probability(x, labels):
    return jnp.take_along_axis(jax.nn.softmax(x), labels[:, None], axis=-1)[:, 0]


def well(x, labels):
    """A loss that is least at p_y = 0.3, and from there on turns away from the true class."""
    return (own_probability(x, labels) - 0.3) ** 2


@pytest.fixture(scope="module")
def on_path():
    pairs = shape.paths(2)["one other"]
    return {loss: shape.respond(loss, pairs) for loss in (cross_entropy, well)}


def test_cross_entropy_is_its_own_reference(on_path):
    found, p = on_path[cross_entropy], shape.path_probabilities()
    np.testing.assert_allclose(found.losses, -np.log(p), rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(found.of_label, p - 1, rtol=2e-3)
    np.testing.assert_allclose(found.norms, found.reference, rtol=2e-3)
    np.testing.assert_allclose(found.reference, np.sqrt(2) * (1 - p), rtol=2e-3)
    assert not (found.turns | found.vanishes).any()


def test_where_a_planted_loss_turns_and_vanishes(on_path):
    found, p = on_path[well], shape.path_probabilities()
    # Its gradient by the logits is 2 (p - 0.3) p (1 - p) (1, -1), cross-entropy's (1 - p) (-1, 1).
    ratio = 2 * np.abs(p - 0.3) * p
    np.testing.assert_allclose(found.norms / found.reference, ratio, rtol=1e-2, atol=2e-3)
    assert np.array_equal(found.vanishes, ratio < 0.01)
    assert np.array_equal(found.turns, (p > 0.3) & (ratio >= 0.01))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_paths_lead_where_they_say(num_classes):
    for name, pairs in shape.paths(num_classes).items():
        p = pairs.probabilities
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(p[:, 0], shape.path_probabilities(), rtol=1e-5)
        rest = 0 if name == "one other" else p[:, 1]
        np.testing.assert_allclose(p[:, -1] if num_classes > 2 else 0, rest, atol=1e-7)
    assert set(shape.paths(2)) == {"one other"}


def test_a_loss_and_its_slope_are_drawn_beside_cross_entropy():
    losses, pulls, ratios = shape.plot_loss({"twice": lambda x, y: 2 * cross_entropy(x, y)}).axes
    expected = [
        ("twice, the rest to one other", 2),
        ("twice, the rest to all alike", 2),
        ("cross-entropy, the rest to one other", 1),
        ("cross-entropy, the rest to all alike", 1),
    ]
    for loss, pull, ratio, (name, factor) in zip(
        losses.lines, pulls.lines, ratios.lines, expected, strict=True
    ):
        assert loss.get_label() == name
        p, value = loss.get_data()
        np.testing.assert_allclose(value, -factor * np.log(p), rtol=2e-3, atol=4e-6)
        np.testing.assert_allclose(pull.get_ydata(), factor * (1 - p), rtol=2e-3, atol=2e-6)
        np.testing.assert_allclose(ratio.get_ydata(), factor, rtol=2e-3)


def test_the_gradient_of_a_formula_is_told(monkeypatch):
    p = np.asarray([[0.001, 0.999], [0.001, 0.999], [0.4, 0.6]], np.float32)
    pairs = Pairs(jnp.asarray(p), jnp.asarray([0, 0, 1]), jnp.asarray([4, 4, 0]))
    names = card.__globals__
    monkeypatch.setitem(names, "sample_pairs", lambda *_: pairs)
    monkeypatch.setitem(names, "CLASS_COUNTS", (2,))  # less to compile
    monkeypatch.setitem(names, "plot_loss", lambda *_, **__: None)
    study = card(CardConfig("mae"))
    # The norm of mean absolute error's gradient is 2 p_y times cross-entropy's.
    (row,) = study.table.to_dict("records")
    assert row["gradient ratio at p = 0.1"] == pytest.approx(0.2, rel=1e-2)
    assert row["vanishes, %"] == pytest.approx(100 * np.mean(shape.path_probabilities() < 0.005))
    assert row["turns, %"] == 0
    regimes = study.tables["On synthetic pairs"].set_index("pairs")["vanishes, %"]
    assert regimes["confident wrong"] == 100
    assert regimes["all"] == pytest.approx(200 / 3)
    assert regimes["uniform"] == 0
    assert study.notes[0].startswith("mae")


def test_a_network_for_three_classes_from_its_file_to_its_card(tmp_path, capsys):
    architecture = Architecture("pair", (4,), "tanh", 3)
    params = nnx.to_pure_dict(architecture.initial_state(jax.random.key(0)))
    EvolvedLoss(params, jnp.ones(()), architecture).save(tmp_path / "mine.safetensors")
    run = tmp_path / "run"
    assert cli.main(["card", str(tmp_path / "mine.safetensors"), "--run-dir", str(run)]) == 0
    out = capsys.readouterr().out
    assert "gradient ratio at p = 0.01" in out
    assert "one other" in out
    assert "all alike" in out
    page = (run / "README.md").read_text()
    assert "# The loss mine" in page
    assert len((run / "curves.png").read_bytes()) > 20_000


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="loss is 'hinge'; expected one of"):
        CardConfig("hinge")
    with pytest.raises(LossFileError, match="there is no loss file"):
        card(CardConfig(str(tmp_path / "none.safetensors")))
