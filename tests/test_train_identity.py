"""What a run folder and a list of seeds know of the trainings they stand for."""

import dataclasses
from functools import partial
from unittest import mock

import numpy as np
import pytest

from edl_jax import DATASETS, MODELS, ArraySource, PretrainConfig, train
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.models.resnet import ResNet
from edl_jax.runs.folder import read_json
from edl_jax.studies import (
    AblateConfig,
    CompareConfig,
    CoverageConfig,
    ablate,
    compare,
    coverage,
)
from edl_jax.studies.cells import Cell
from edl_jax.training import make_trainer
from edl_jax.training.training import load_shared
from tests.test_training import DIGITS

SMALL = dataclasses.replace(
    DIGITS, epochs=1, batch_size=32, data=dataclasses.replace(DIGITS.data, name="mine")
)


def register(labels_first: int):
    images = np.arange(64, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    labels = (np.arange(64) + labels_first) % 2
    arrays = {"train": (images, labels), "test": (images, labels)}
    DATASETS.register("mine")(lambda: ArraySource("mine", "of our own", ("even", "odd"), arrays))


def test_a_run_folder_knows_its_data(tmp_path):
    with mock.patch.dict(DATASETS):
        register(0)
        first = train(SMALL, run_dir=tmp_path)
        identity = load_shared(SMALL.data).identity
        assert read_json(tmp_path / "config.json")["data"] == identity
        written = (tmp_path / "config.json").read_text()
        assert "data_dir" not in written
        # Version 0.1.0 wrote it.
        written = written.replace('"name"', '"data_dir": null, "name"', 1)
        (tmp_path / "config.json").write_text(written)
        register(0)
        moved = dataclasses.replace(
            SMALL, data=dataclasses.replace(SMALL.data, data_dir="elsewhere")
        )
        again = train(moved, run_dir=tmp_path)  # the same data: its result
        assert again.history == first.history
        register(1)
        with pytest.raises(RunFolderError, match=f"data.digest is '{identity['digest']}' there"):
            train(SMALL, run_dir=tmp_path)


def test_a_run_folder_knows_a_model_that_was_registered(tmp_path):
    with mock.patch.dict(MODELS), mock.patch.dict(DATASETS):
        register(0)
        MODELS.register("my_model")(partial(ResNet, (0,), width=4))
        config = dataclasses.replace(SMALL, model="my_model")
        train(config, run_dir=tmp_path)
        MODELS.register("my_model")(partial(ResNet, (0,), width=8))
        with pytest.raises(RunFolderError, match=r"model my_model is .*width=4.* there and"):
            train(config, run_dir=tmp_path)


class Begun(BaseException):
    """The study's folder is there and its work begins; no failure of a cell."""


def begin(*args, **options):
    raise Begun


@pytest.mark.parametrize("name", ["compare", "coverage", "ablate"])
def test_the_folder_of_a_study_knows_its_data(tmp_path, monkeypatch, name):
    study, cell, config = {
        "compare": (
            compare,
            Cell,
            CompareConfig(losses=("gce", "mae"), num_seeds=2, train=SMALL),
        ),
        "coverage": (
            coverage,
            CoverageConfig,
            CoverageConfig(train=SMALL, losses=("gce",), epochs=(0, 1)),
        ),
        "ablate": (
            ablate,
            Cell,
            AblateConfig(
                pretrain=dataclasses.replace(AblateConfig().pretrain, class_counts=(2,)),
                train=dataclasses.replace(
                    SMALL, data=dataclasses.replace(SMALL.data, val_examples=8)
                ),
                downstream=True,
            ),
        ),
    }[name]
    monkeypatch.setattr(cell, "run", begin)
    with mock.patch.dict(DATASETS):
        for _ in range(2):  # the second takes up the folder
            register(0)
            with pytest.raises(Begun):
                study(config, run_dir=tmp_path, executor="1")
        register(1)
        with pytest.raises(RunFolderError, match="another configuration: data"):
            study(config, run_dir=tmp_path, executor="1")


@pytest.mark.parametrize(
    ("run_dir", "named"), [("", "the path is ''"), ("~nobody-at-all/run", "home folder")]
)
def test_a_run_folder_that_cannot_be_is_refused(run_dir, named):
    with pytest.raises(ConfigError, match=named):
        train(
            dataclasses.replace(DIGITS, data=dataclasses.replace(DIGITS.data, train_examples=64)),
            run_dir=run_dir,
        )


@pytest.mark.parametrize(
    ("seeds", "named"),
    [
        (
            [0, 2**32],
            "seeds is .*4294967296.*; expected .* a whole number, at least 0 and at most 42949",
        ),
        ([-1], "seeds is .*-1"),
        ([1.0], r"seeds is .*1\.0"),
        ([True], "seeds is .*True"),
        (np.array([3, -3]), r"seeds is .*-3"),
        ([0, 1, 0], "seeds is .*0, 1, 0.*all different"),
        ([3, np.uint32(3)], "seeds is .*3, 3.*all different"),
        (None, "seeds is None; expected a tuple .each a whole number"),
        (np.array(5), "seeds is 5; expected a tuple .each a whole number"),
    ],
)
def test_seeds_that_wrap_or_repeat_are_refused(seeds, named):
    config = dataclasses.replace(DIGITS, data=dataclasses.replace(DIGITS.data, train_examples=64))
    with pytest.raises(ConfigError, match=named):
        make_trainer(config)(seeds)


def test_a_trainer_of_something_else_is_refused():
    with pytest.raises(ConfigError, match=r"config is PretrainConfig\(.*; expected a TrainConfig"):
        make_trainer(PretrainConfig())
