import json
import runpy
from pathlib import Path

import matplotlib
import pytest

from edl_jax import DataConfig, TrainConfig
from tests.test_evolution import TINY

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "examples" / "colab_tpu.ipynb").read_text())


@pytest.mark.slow
def test_research_script_evolves_a_loss_and_trains_with_it():
    main = runpy.run_path(str(ROOT / "examples" / "research_script.py"))["main"]
    assert main(TINY, steps=100) > 0.8


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    small = DataConfig("digits", train_examples=256, test_examples=64)
    names = {}
    for index, cell in enumerate(NOTEBOOK["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {index}", "exec"), names)
        if "settings" in cell["metadata"].get("tags", ()):
            assert names["pretraining"].generations == 50  # what a CPU gets
            names |= {"pretraining": TINY, "training": TrainConfig(epochs=1, data=small)}
    said = capsys.readouterr().out
    assert said.startswith("devices:")
    assert said.count("test accuracy") == 2
    assert (tmp_path / "evolved.safetensors").is_file()
    assert (tmp_path / "runs" / "card" / "README.md").is_file()


def test_notebook_holds_no_outputs():
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
