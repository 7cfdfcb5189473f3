"""What a run folder and a list of seeds know of the trainings they stand for."""

import dataclasses

import numpy as np
import pytest

from edl_jax import DATASETS, SEVERITIES, ArraySource, PretrainConfig, train
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.runs.folder import RunFolder, read_json
from edl_jax.studies.ablation import downstream, seeds
from edl_jax.studies.ablation.config import AblateConfig
from edl_jax.studies.comparison import study as comparison
from edl_jax.studies.comparison.config import CompareConfig
from edl_jax.studies.transferability import study as transferability
from edl_jax.training import make_trainer
from edl_jax.training.training import load_config_dataset
from tests.test_training import DIGITS

SMALL = dataclasses.replace(DIGITS, dataset="mine", epochs=1, batch_size=32)


def register(labels_first: int):
    images = np.arange(64, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    labels = (np.arange(64) + labels_first) % 2
    arrays = {"train": (images, labels), "test": (images, labels)}
    DATASETS.register("mine")(lambda: ArraySource("mine", "of our own", ("even", "odd"), arrays))


def test_a_run_folder_knows_its_data(tmp_path):
    with DATASETS.restored():
        register(0)
        first = train(SMALL, run_dir=tmp_path)
        identity = load_config_dataset(SMALL).identity
        assert read_json(tmp_path / "config.json")["data"] == identity
        register(0)
        again = train(SMALL, run_dir=tmp_path)  # the same data: its result
        assert again.history == first.history
        register(1)
        with pytest.raises(RunFolderError, match=f"data.digest is '{identity['digest']}' there"):
            train(SMALL, run_dir=tmp_path)


class Begun(Exception):
    """The study's folder is there and its work begins."""


@pytest.mark.parametrize("name", ["compare", "transfer"])
def test_the_folder_of_a_study_knows_its_data(tmp_path, monkeypatch, name):
    def begin(*args, **options):
        raise Begun

    if name == "compare":
        monkeypatch.setattr(comparison, "train_all", begin)
        config = CompareConfig(losses=("gce", "mae"), num_seeds=2, datasets=("mine",), train=SMALL)
        study = lambda: comparison.compare(config, run_dir=tmp_path)  # noqa: E731
    else:
        monkeypatch.setattr(transferability, "_record_missing", begin)
        config = transferability.TransferConfig(train=SMALL, losses=("gce",), epochs=(0, 1))
        study = lambda: transferability.transfer(config, run_dir=tmp_path)  # noqa: E731
    with DATASETS.restored():
        for _ in range(2):  # the second takes up the folder
            register(0)
            with pytest.raises(Begun):
                study()
        register(1)
        with pytest.raises(RunFolderError, match="another configuration: data"):
            study()


def test_a_training_of_an_ablation_is_of_its_data(tmp_path, monkeypatch):
    config = AblateConfig(
        pretrain=dataclasses.replace(AblateConfig().pretrain, class_counts=(2,)),
        train=dataclasses.replace(SMALL, val_examples=8),
        downstream_losses=24,
    )
    folder = RunFolder(tmp_path, {})

    def begin(*args):
        raise Begun

    monkeypatch.setattr(downstream, "_losses", begin)
    with DATASETS.restored():
        register(0)
        known = {"data": "mine", "digest": load_config_dataset(config.train).digest}
        rows = [{**source._asdict(), **known} for source in downstream.sources(config)]
        folder.append_rows(rows, downstream.TRAININGS)
        assert downstream.train_downstream(config, folder) == rows
        register(1)
        with pytest.raises(Begun):
            downstream.train_downstream(config, folder)


def test_programs_of_an_ablation_are_of_the_parts_that_are_registered():
    made = []
    with SEVERITIES.restored():
        for name in ("brier", "brier", "miss_probability"):
            SEVERITIES.register("mine")(SEVERITIES[name])
            seeds.make_seed_runs(PretrainConfig(severity="mine", hidden=(2,)), 1)
            made.append(seeds._programs.cache_info()[:2])
    (hits, misses), second, third = made
    assert second == (hits + 1, misses)
    assert third == (hits + 1, misses + 1)


@pytest.mark.parametrize(
    ("run_dir", "named"), [("", "the path is ''"), ("~nobody-at-all/run", "is not known")]
)
def test_a_run_folder_that_cannot_be_is_refused(run_dir, named):
    with pytest.raises(ConfigError, match=named):
        train(dataclasses.replace(DIGITS, train_examples=64), run_dir=run_dir)


@pytest.mark.parametrize(
    ("seeds", "named"),
    [
        ([0, 2**32], "seed is 4294967296; expected a whole number, at least 0 and at most 42949"),
        ([-1], "seed is -1"),
        ([1.0], r"seed is 1\.0"),
        ([True], "seed is True"),
        (np.array([3, -3]), r"seed is .*-3"),
        ([0, 1, 0], "seeds has 0 more than once, which would give equal results"),
        ([3, np.uint32(3)], "seeds has 3 more than once"),
        ([*range(9)] * 2, "seeds has 0, 1, 2, 3, 4 more than once"),
    ],
)
def test_seeds_that_wrap_or_repeat_are_refused(seeds, named):
    config = dataclasses.replace(DIGITS, train_examples=64)
    with pytest.raises(ConfigError, match=named):
        make_trainer(config)(seeds)
