import dataclasses
import json

import numpy as np
import pytest

from edl_jax import PretrainConfig, load_pretrained
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.studies import CompareConfig, DemoConfig, compare, demo
from edl_jax.studies.comparison import study as comparison
from edl_jax.training import download
from tests.test_evolution import TINY
from tests.test_training import DIGITS

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


def test_demo_refuses_a_loss_for_other_class_counts_before_it_evolves_one():
    pair = PretrainConfig(network="pair", class_counts=(5,))
    with pytest.raises(ConfigError, match=r"class_counts is \(5,\) .*expected \(10,\)"):
        DemoConfig(pretrain=pair)
    DemoConfig(pretrain=dataclasses.replace(pair, class_counts=(10,)))
