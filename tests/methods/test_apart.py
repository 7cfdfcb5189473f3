"""Nothing but its own file knows of a method."""

import subprocess
import sys

import pytest

from edl_jax.methods import METHODS

WITHOUT = """
import pkgutil, sys
file = f"edl_jax.methods.{sys.argv[1]}"
sys.modules[file] = None  # to import it fails
found = pkgutil.iter_modules
pkgutil.iter_modules = lambda *given: [x for x in found(*given) if x.name != file]
import edl_jax
[getattr(edl_jax, name) for name in edl_jax.__all__]
import edl_jax.cli, edl_jax.training.search
from edl_jax.losses.method import METHODS
print(*METHODS)
"""
OWN = {name: part for name, part in METHODS.items() if METHODS.is_protected(name)}  # not a test's
FILES = {name: part.__module__.rpartition(".")[2] for name, part in OWN.items()}


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({*FILES.values()}))
def test_the_rest_works_without_a_methods_file(file):
    done = subprocess.run([sys.executable, "-c", WITHOUT, file], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert {*done.stdout.split()} == {name for name in FILES if FILES[name] != file}


def test_every_file_adds_one_method():
    assert {*FILES} >= {
        "edl",
        "elf",
        "glo",
        "taylor_glo",
        "l2t_dlf",
        "l2t_dln",
        "slf",
        "ala",
        "metal",
    }
    assert len({*FILES.values()}) == len(FILES)
