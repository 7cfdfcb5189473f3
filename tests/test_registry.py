import re
import sys

import numpy as np
import pytest

from edl_jax import (
    DATASETS,
    LOSSES,
    MARGINS,
    MODELS,
    MUTATIONS,
    SEVERITIES,
    STRATEGIES,
    ArraySource,
)
from edl_jax.errors import ConfigError
from edl_jax.registry import Registry

TABLES = (DATASETS, LOSSES, MARGINS, MODELS, MUTATIONS, SEVERITIES, STRATEGIES)
PACKAGE = """
from edl_jax.registry import Registry, load_parts

SHAPES = Registry("shape")
load_parts(__name__, SHAPES)
"""
PART = """
from shelf import SHAPES

@SHAPES.register("{0}")
def {0}(): ...
"""


@pytest.fixture
def flavours():
    registry = Registry("flavour", int)
    registry.register("sweet")(1)
    registry.register("sour")(2)
    return registry


def test_a_registry_is_a_mapping_in_order_of_registration(flavours):
    assert dict(flavours) == {"sweet": 1, "sour": 2}
    assert list(flavours) == ["sweet", "sour"]
    assert len(flavours) == 2
    assert flavours["sour"] == 2
    assert "sweet" in flavours
    assert "bitter" not in flavours


def test_register_gives_the_part_back(flavours):
    given = 12345
    assert flavours.register("bitter")(given) is given
    assert flavours["bitter"] is given


def test_an_unknown_name_is_refused_with_the_known_ones(flavours):
    message = "there is no flavour 'salty'; expected one of sweet, sour."
    with pytest.raises(ConfigError, match=re.escape(message)):
        flavours["salty"]


def test_a_part_of_your_own_is_replaced(flavours):
    flavours.protect()
    flavours.register("bitter")(3)
    flavours.register("bitter")(4)
    assert dict(flavours) == {"sweet": 1, "sour": 2, "bitter": 4}


def test_a_name_of_the_package_is_refused_and_keeps_its_part(flavours):
    flavours.protect()
    with pytest.raises(ConfigError, match="there is a flavour 'sweet' already; choose another"):
        flavours.register("sweet")(5)
    assert flavours["sweet"] == 1


@pytest.mark.parametrize("name", ["", "two words", "9lives", "a-b", "a/b", None, 3, print])
def test_what_is_no_identifier_is_refused(flavours, name):
    with pytest.raises(ConfigError, match="cannot name a flavour; expected an identifier"):
        flavours.register(name)
    assert len(flavours) == 2


def test_every_file_of_a_package_is_loaded_and_its_parts_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "shelf").mkdir()
    for file, text in {
        "__init__": PACKAGE,
        "round": PART.format("circle"),
        "square": PART.format("box"),
    }.items():
        (tmp_path / "shelf" / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import shelf

    try:
        assert [*shelf.SHAPES] == ["circle", "box"]
        shelf.SHAPES.register("mine")(print)
        with pytest.raises(ConfigError, match="there is a shape 'box' already"):
            shelf.SHAPES.register("box")(print)
        assert not shelf.SHAPES.is_protected("mine")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "shelf"]:
            del sys.modules[name]


def test_registries_are_apart(flavours):
    other = Registry("shape", int)
    other.register("sweet")(7)
    assert flavours["sweet"] == 1
    assert dict(other) == {"sweet": 7}


@pytest.mark.parametrize("registry", TABLES)
def test_the_packages_own_parts_cannot_be_replaced(registry):
    for name in registry.keys() - {"tiny", "small"}:  # models that other tests register
        part = registry[name]
        with pytest.raises(ConfigError, match=f"'{name}' already"):
            registry.register(name)(None)
        assert registry[name] is part


def test_a_shipped_loss_cannot_be_replaced_by_a_formula():
    with pytest.raises(ConfigError, match="'edl' already"):
        LOSSES.register("edl")(LOSSES["focal"])


@pytest.mark.parametrize("registry", TABLES)
def test_what_is_no_such_part_is_refused(registry):
    images = {part: (np.zeros((2, 4, 4, 1), np.uint8), np.arange(2)) for part in ("train", "test")}
    source = ArraySource("mine", "of my own", ("even", "odd"), images)
    kind = "Mutation" if registry is MUTATIONS else "function or class"
    before = dict(registry)
    with pytest.raises(ConfigError, match=rf"'mine' is ArraySource\(.*; expected a {kind}\."):
        registry.register("mine")(source)
    assert dict(registry) == before
