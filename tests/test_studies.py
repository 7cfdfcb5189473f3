import dataclasses
import functools
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import SEVERITIES, Mixture, PretrainConfig, TrainConfig, load_pretrained, pretrain
from edl_jax.data import download
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.evolution import SlopeConfig
from edl_jax.evolution.monitor import check_ranks
from edl_jax.studies import (
    AblateConfig,
    CompareConfig,
    DemoConfig,
    TransferConfig,
    ablate,
    compare,
    demo,
    inspect,
    transfer,
)
from edl_jax.studies.ablation.protocol import protocol as ablation_protocol
from edl_jax.studies.ablation.seeds import keys_of
from edl_jax.studies.comparison import study as comparison
from edl_jax.studies.comparison.results import protocol as comparison_protocol
from edl_jax.studies.transferability.results import protocol as transfer_protocol
from edl_jax.training import Augmentation
from tests.test_evolution import TINY
from tests.test_training import DIGITS

pair = functools.partial(PretrainConfig, network="pair", class_counts=(10,))
SMALL = CompareConfig(num_seeds=2, train=dataclasses.replace(DIGITS, epochs=2, train_examples=512))


def test_compare_keeps_finished_cells_and_runs_only_the_missing(tmp_path, monkeypatch):
    whole = compare(SMALL, run_dir=tmp_path / "whole")
    assert [(c["loss"], c["seed"]) for c in whole.cells] == [
        (loss, seed) for loss in ("cross_entropy", "edl") for seed in (0, 1)
    ]
    assert len({c["test_accuracy"] for c in whole.cells}) > 1
    assert (tmp_path / "whole" / "comparison.md").read_text() == whole.table

    # A comparison stopped after its second cell, the third cut short by the kill.
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    lines = [json.dumps(cell) for cell in whole.cells]
    (stopped / "cells.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])
    ran = []
    original = comparison.make_trainer

    def make_trainer(config, *, loss, dataset):
        train = original(config, loss=loss, dataset=dataset)
        return lambda seeds, **k: ran.extend((config.loss, x) for x in seeds) or train(seeds, **k)

    monkeypatch.setattr(comparison, "make_trainer", make_trainer)
    resumed = compare(SMALL, run_dir=stopped)
    assert sorted(ran) == [("edl", 0), ("edl", 1)]
    assert resumed.table == whole.table
    again = compare(SMALL, run_dir=stopped)
    assert len(ran) == 2
    assert again.table == whole.table


def test_compare_refuses_a_folder_of_another_comparison(tmp_path):
    path = tmp_path / "loss.safetensors"
    load_pretrained().save(path)
    config = dataclasses.replace(SMALL, losses=(str(path),), num_seeds=1)
    compare(config, run_dir=tmp_path / "run")
    with pytest.raises(RunFolderError, match="num_seeds is 1 there and 2 here"):
        compare(dataclasses.replace(config, num_seeds=2), run_dir=tmp_path / "run")
    load_pretrained().replace(scale=np.float32(2)).save(path)
    with pytest.raises(RunFolderError, match=r"losses\..* is 'EvolvedLoss"):
        compare(config, run_dir=tmp_path / "run")


def test_demo_runs_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setitem(download.CIFAR_URLS, "cifar10", "http://127.0.0.1:9/none")
    monkeypatch.setattr(
        "edl_jax.studies.demonstration._small_training", lambda name, directory: SMALL.train
    )
    evolved, compared = demo(DemoConfig(num_seeds=2, pretrain=TINY), tmp_path / "run")
    assert "handwritten digits" in compared.source
    assert compared.rows[1]["n"] == 2
    assert evolved.metrics
    for name in ("evolution", "loss", "accuracy"):
        data = (tmp_path / "run" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 10_000


@pytest.mark.parametrize(
    "study",
    [
        functools.partial(compare, None),
        functools.partial(ablate, None),
        functools.partial(transfer, None),
        functools.partial(inspect, None),
        functools.partial(demo, DemoConfig()),
    ],
    ids=lambda study: study.func.__name__,
)
def test_a_run_folder_is_a_path_before_anything_is_done(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong in ("", 3, "~nobody_of_this_name/run"):
        with pytest.raises(ConfigError, match=f"the path is {wrong!r}"):
            study(run_dir=wrong)
    assert not list(tmp_path.iterdir())


LAST = 2**32 - 1  # the highest seed: jax.random.key takes the next one for 0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda seed, n: CompareConfig(num_seeds=n, train=TrainConfig(seed=seed)), "num_seeds"),
        (
            lambda seed, n: CompareConfig(
                num_seeds=1,
                tuning_seeds=n,
                learning_rates=(0.1, 0.2),
                train=TrainConfig(seed=seed - 1, val_examples=10),
            ),
            "tuning_seeds",
        ),
        (lambda seed, n: AblateConfig(num_seeds=n, pretrain=pair(seed=seed)), "num_seeds"),
        (
            lambda seed, n: AblateConfig(
                num_seeds=2, downstream_losses=n, pretrain=pair(seed=seed, generations=300)
            ),
            "downstream_losses",
        ),
        (lambda seed, n: TransferConfig(num_seeds=n, train=TrainConfig(seed=seed)), "num_seeds"),
        (lambda seed, n: DemoConfig(num_seeds=n + seed), "num_seeds"),
    ],
)
def test_no_seed_of_a_study_wraps(make, field):
    assert make(LAST - 4, 5)  # the last seed is the highest
    with pytest.raises(ConfigError, match=rf"\.{field} is \d+ with seeds from \d+ on; .*{LAST}"):
        make(LAST - 4, 6)


def test_an_evolution_of_many_seeds_refuses_one_that_wraps():
    for seed in (-1, LAST + 1, 0.5):
        with pytest.raises(ConfigError, match=f"seed is {seed}; expected a whole number"):
            keys_of([0, seed])


# Of each field another value than the default, with what it needs beside it.
CHANGED = {
    "loss": {"loss": "gce"},
    "dataset": {"dataset": "digits"},
    "data_dir": {"data_dir": "elsewhere"},
    "train_examples": {"train_examples": 777},
    "val_examples": {"val_examples": 777},
    "test_examples": {"test_examples": 777},
    "split_seed": {"split_seed": 77},
    "image_size": {"image_size": 16},
    "stream": {"stream": True},
    "label_noise": {"label_noise": "symmetric", "noise_rate": 0.4},
    "noise_rate": {"label_noise": "asymmetric", "noise_rate": 0.3},
    "imbalance": {"imbalance": "step"},
    "imbalance_factor": {"imbalance": "step", "imbalance_factor": 7.0},
    "corruption_seed": {"corruption_seed": 77},
    "augmentation": {"augmentation": Augmentation(flip=False, cutout=4)},
    "model": {"model": "resnet20"},
    "width": {"width": 7},
    "head_scale": {"head_scale": 30.0},
    "sync_batch_norm": {"sync_batch_norm": True},
    "precision": {"precision": "float32"},
    "epochs": {"epochs": 7},
    "batch_size": {"batch_size": 77},
    "accumulate": {"accumulate": 2},
    "optimizer": {"optimizer": "adamw"},
    "optimizer_options": {"optimizer": "adamw", "optimizer_options": {"b1": 0.8}},
    "learning_rate": {"learning_rate": 0.7},
    "warmup_epochs": {"warmup_epochs": 0.7},
    "weight_decay": {"weight_decay": 0.07},
    "clip_norm": {"clip_norm": 7.0},
    "ema_decay": {"ema_decay": 0.7},
    "seed": {"seed": 77},
    "steps_per_chunk": {"steps_per_chunk": 77},
    "keep_checkpoints": {"keep_checkpoints": 7},
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainConfig)])
def test_every_protocol_names_a_setting_of_training_that_is_no_default(field, monkeypatch):
    train = TrainConfig(**CHANGED[field])
    told = [f"{name}={value!r}" for name, value in CHANGED[field].items()]
    if field == "augmentation":
        told = ["augmentation.flip=False", "augmentation.cutout=4"]
    part = np.zeros(5, int)
    data = SimpleNamespace(name="n", source="s", train_labels=part, val_labels=part)
    data.test_labels = part
    compared = CompareConfig(losses=(train.loss,), train=train)
    transferred = TransferConfig(losses=(train.loss,), train=train)
    ablated = AblateConfig(downstream_losses=3, train=dataclasses.replace(train, val_examples=777))
    recording = SimpleNamespace(train_labels=part, held_out_labels=part)
    protocols = {
        "compare": comparison_protocol(compared, dict.fromkeys(compared.settings(), data), []),
        "transfer": transfer_protocol(transferred, "s", recording),
        "ablate": ablation_protocol(ablated, dict.fromkeys(ablated.cells(), CELL), 0, [DOWNSTREAM]),
    }
    if field == "loss":  # which is another in each of an ablation's trainings
        del protocols["ablate"]
    for study, sentences in protocols.items():
        (named,) = [x for x in sentences if x.startswith("Settings of the trainings that are not")]
        for each in told:
            assert each in named, study
    (plain,) = [x for x in comparison_protocol(CompareConfig(), {}, []) if "ettings of the" in x]
    assert plain == "All settings of the trainings that are not compared are the defaults."


CELL = {"final": []}
DOWNSTREAM = {"data": "digits"}


def test_a_protocol_leaves_what_is_compared_to_its_table():
    config = CompareConfig(
        models=("resnet8", "resnet20"), train=TrainConfig(image_size=16, width=8, model="vit_tiny")
    )
    (named,) = [x for x in comparison_protocol(config, {}, []) if x.startswith("Settings of the")]
    assert named == "Settings of the trainings that are not the defaults: image_size=16, width=8."
    ablated = AblateConfig(
        mutations=("gaussian", "tent"), pretrain=pair(generations=7, mixture=Mixture(sparse=0.0))
    )
    cells = dict.fromkeys(ablated.cells(), CELL)
    (named,) = [x for x in ablation_protocol(ablated, cells, 0, []) if x.startswith("Settings")]
    assert named == (
        "Settings of the evolutions that are not the defaults: network='pair', "
        "class_counts=(10,), mixture.sparse=0.0, generations=7."
    )
    transferred = TransferConfig(mixture=Mixture(untrained=0.0))
    recording = SimpleNamespace(train_labels=[], held_out_labels=[])
    assert "Settings of the mixture of pairs that are not the defaults: untrained=0.0." in (
        transfer_protocol(transferred, "s", recording)
    )


def test_a_severity_that_ranks_nothing_says_so(tmp_path):
    with SEVERITIES.restored():

        @SEVERITIES.register("same")
        def same(log_probabilities, labels):
            return 0.0 * labels

        constant = dataclasses.replace(TINY, severity="same")
        message = "severity is 'same', with which .* pairs ask for no margin"
        with pytest.raises(ConfigError, match=message):
            pretrain(constant, run_dir=tmp_path)
        with pytest.raises(ConfigError, match=message):
            ablate(AblateConfig(num_seeds=2, mutations=("gaussian",), pretrain=constant))
        # Where something else is asked for, it may be all.
        check_ranks(dataclasses.replace(constant, task_weight=1.0), jnp.zeros(9))
        check_ranks(
            dataclasses.replace(constant, slope=SlopeConfig(norm=1.0, pairs=9)), np.zeros(9)
        )


def test_demo_refuses_a_loss_for_other_class_counts_before_it_evolves_one():
    pair = PretrainConfig(network="pair", class_counts=(5,))
    with pytest.raises(ConfigError, match=r"class_counts is \(5,\) .*expected \(10,\)"):
        DemoConfig(pretrain=pair)
    DemoConfig(pretrain=dataclasses.replace(pair, class_counts=(10,)))
