import runpy
from pathlib import Path

from tests.test_evolution import TINY

ROOT = Path(__file__).parents[1]


def test_research_script_evolves_a_loss_and_trains_with_it():
    main = runpy.run_path(str(ROOT / "examples" / "research_script.py"))["main"]
    assert main(TINY, steps=100) > 0.8


def test_import_time_benchmark_runs(capsys):
    runpy.run_path(str(ROOT / "benchmarks" / "import_time.py"))["main"](repeats=2)
    assert "ratio" in capsys.readouterr().out
