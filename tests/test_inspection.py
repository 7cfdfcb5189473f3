import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edl_jax import EvolvedLoss, cli, load_pretrained
from edl_jax.errors import ConfigError, LossFileError
from edl_jax.losses.adaptive import AdaptiveBarron
from edl_jax.losses.cross_entropies import cross_entropy
from edl_jax.networks import Architecture
from edl_jax.pairs import Pairs
from edl_jax.studies.inspection import loss_shape as shape, study as inspection
from edl_jax.studies.inspection.study import InspectConfig, inspect


def own_probability(x, labels):
    return jnp.take_along_axis(jax.nn.softmax(x), labels[:, None], axis=-1)[:, 0]


def well(x, labels):
    """A loss that is least at p_y = 0.3, and from there on turns away from the true class."""
    return (own_probability(x, labels) - 0.3) ** 2


@pytest.fixture(scope="module")
def on_path():
    logits = {"path": shape.paths(2)["one rival"]}
    return {loss: shape.respond(loss, logits)["path"] for loss in (cross_entropy, well)}


def test_cross_entropy_is_its_own_reference(on_path):
    found, p = on_path[cross_entropy], shape.path_probabilities()
    np.testing.assert_allclose(found.losses, -np.log(p), rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(found.own, p - 1, rtol=2e-3)
    np.testing.assert_allclose(found.norms, found.reference, rtol=2e-3)
    np.testing.assert_allclose(found.reference, np.sqrt(2) * (1 - p), rtol=2e-3)
    assert shape.falls(found)
    assert shape.convex_share(found) == 1
    assert not (found.turns() | found.vanishes()).any()
    split = shape.shares(found, np.zeros(len(p)))
    assert split["all"] == pytest.approx((0, 0, 1), rel=1e-3)
    assert split["all"] == split["uniform"]
    assert np.isnan(split["sparse"]).all()


def test_where_a_planted_loss_turns_and_vanishes(on_path):
    found, p = on_path[well], shape.path_probabilities()
    # Its gradient by the logits is 2 (p - 0.3) p (1 - p) (1, -1), cross-entropy's (1 - p) (-1, 1).
    ratio = 2 * np.abs(p - 0.3) * p
    np.testing.assert_allclose(found.norms / found.reference, ratio, rtol=1e-2, atol=2e-3)
    assert np.array_equal(found.vanishes(), ratio < 0.01)
    assert np.array_equal(found.turns(), (p > 0.3) & (ratio >= 0.01))
    assert not shape.falls(found)
    assert shape.convex_share(found) < 0.9
    (turns,) = shape.intervals(found.turns(), p)
    assert turns == pytest.approx((0.32, 0.9999), abs=0.01)
    early, around = shape.intervals(found.vanishes(), p)
    assert (*early, *around) == pytest.approx((0.0001, 0.0177, 0.283, 0.315), abs=0.01)
    some = shape.shares(found, (p > 0.5).astype(int))
    assert some["sparse"].turns == 1
    assert some["uniform"].turns == np.mean(found.turns()[p < 0.5])


def test_intervals_by_hand():
    p = np.asarray([0.1, 0.2, 0.3, 0.4])
    assert shape.intervals(np.asarray([1, 1, 0, 1], bool), p) == [(0.1, 0.2), (0.4, 0.4)]
    assert shape.intervals(np.zeros(4, bool), p) == []


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_paths_lead_where_they_say(num_classes):
    for name, logits in shape.paths(num_classes).items():
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(p[:, 0], shape.path_probabilities(), rtol=1e-6)
        rest = 0 if name == "one rival" else p[:, 1]
        np.testing.assert_allclose(p[:, -1] if num_classes > 2 else 0, rest, atol=1e-11)
    assert set(shape.paths(2)) == {"one rival"}
    assert np.exp(shape.perfect(num_classes))[0, 0] == 1


def test_maps_cover_what_they_say():
    own, rival, logits = shape.rival_grid(10)
    p = np.exp(logits).reshape(*own.shape, 10)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-9)
    np.testing.assert_allclose(p[..., 0], own)
    np.testing.assert_allclose(p[..., 1], rival)
    assert (p[..., 2:] <= rival[..., None] + 1e-9).all()
    positions, logits = shape.simplex_grid()
    p = np.exp(logits)
    np.testing.assert_allclose(p.sum(axis=-1), 1)
    np.testing.assert_allclose(positions[:, 1], p[:, 0] * 3**0.5 / 2)
    np.testing.assert_allclose(positions[:, 0], p[:, 0] / 2 + p[:, 2])
    assert np.abs(p[:, [0, 0, 1]] - p[:, [1, 2, 2]]).min() > 1e-5  # no ties
    assert p.min(axis=0) == pytest.approx(0.004, rel=0.1)


def test_parts_are_those_of_the_module():
    assert shape.parts(load_pretrained()) == [
        ("layers.0", "bias 16, kernel 5×16", 5 * 16 + 16),
        ("layers.1", "bias 16, kernel 16×16", 16 * 16 + 16),
        ("layers.2", "bias 1, kernel 16×1", 17),
    ]
    (part,) = shape.parts(AdaptiveBarron())
    assert part == ("AdaptiveBarron", "latent_alpha scalar, latent_scale scalar", 2)
    assert shape.parts(cross_entropy) == []


def test_a_baseline_has_no_parts_and_its_gradient_is_told(monkeypatch):
    p = np.asarray([[0.001, 0.999], [0.001, 0.999], [0.4, 0.6]], np.float32)
    pairs = Pairs(jnp.asarray(p), jnp.asarray([0, 0, 1]), jnp.asarray([4, 4, 0]))
    monkeypatch.setattr(inspection, "sample_pairs", lambda *_: pairs)
    for name, value in (("CLASS_COUNTS", (2,)), ("_MAP_CLASSES", 2), ("_REFERENCES", ())):
        monkeypatch.setattr(inspection, name, value)  # less to compile
    for name in ("plot_curves", "plot_rival_maps", "plot_simplex"):
        monkeypatch.setattr(inspection.plots, name, lambda *_: None)
    results = inspect(InspectConfig("mae"))
    assert [table.name for table in results.tables] == ["paths", "regimes"]
    # The norm of mean absolute error's gradient is 2 p_y times cross-entropy's.
    (row,) = results.tables[0].rows
    assert row["ratio_0.1"] == pytest.approx(0.2, rel=1e-2)
    assert row["vanishes"] == "0.0001 to 0.00499"
    assert (row["turns"], row["falls"], row["at_perfect"]) == ("nowhere", True, 0)
    by_regime = {row["regime"]: row for row in results.tables[1].rows}
    assert by_regime["confident_wrong"]["vanishes_2"] == 100
    assert by_regime["all"]["vanishes_2"] == pytest.approx(200 / 3)
    assert by_regime["uniform"]["vanishes_2"] == 0
    assert results.finding.startswith("mae is a formula without parameters, mae")
    assert "Its gradient vanishes on 66.7 % of the synthetic pairs of 2 classes" in results.finding
    assert "those that are confident wrong, of 2 classes (100.0 %)" in results.finding
    assert "turns away from the true class on none" in results.finding


def test_a_network_for_three_classes_from_its_file_to_its_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inspection, "_REFERENCES", ("focal",))  # less to compile and to draw
    architecture = Architecture("pair", (4,), "tanh", 3)
    params = nnx.to_pure_dict(architecture.initial_state(jax.random.key(0)))
    EvolvedLoss(params, jnp.ones(()), architecture).save(tmp_path / "mine.safetensors")
    run = tmp_path / "run"
    assert cli.main(["inspect", str(tmp_path / "mine.safetensors"), "--run-dir", str(run)]) == 0
    assert "mine is a pair network with hidden layers of 4 units (tanh) and 33" in (
        capsys.readouterr().out
    )
    index = json.loads((run / "study.json").read_text())
    assert [figure["name"] for figure in index["figures"]] == ["curves", "rivals", "simplex"]
    rows = json.loads((run / "paths.json").read_text())
    assert [(row["classes"], row["others"]) for row in rows] == [(3, "one rival"), (3, "all alike")]
    layers = json.loads((run / "layers.json").read_text())
    assert [row["parameters"] for row in layers] == [6 * 4 + 4, 5, 33]
    assert "![" in (run / "README.md").read_text()
    for name in ("curves", "rivals", "simplex"):
        assert len((run / f"{name}.png").read_bytes()) > 20_000


def test_a_file_called_as_a_reference_is_is_told_from_it(tmp_path, monkeypatch):
    for name, value in (("CLASS_COUNTS", (2,)), ("_MAP_CLASSES", 2), ("_REFERENCES", ("focal",))):
        monkeypatch.setattr(inspection, name, value)  # less to compile
    for name in ("plot_curves", "plot_rival_maps", "plot_simplex"):
        monkeypatch.setattr(inspection.plots, name, lambda *_: None)
    rows = {}
    for name in ("mine", "focal"):
        path = tmp_path / f"{name}.safetensors"
        load_pretrained().save(path)
        results = inspect(InspectConfig(str(path)))
        rows[name] = [table.rows for table in results.tables]
    assert rows["focal"] == rows["mine"]
    assert results.title == f"The loss {path}"


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="loss is 'hinge'; expected one of"):
        InspectConfig("hinge")
    with pytest.raises(LossFileError, match="there is no loss file"):
        inspect(InspectConfig(str(tmp_path / "none.safetensors")))
