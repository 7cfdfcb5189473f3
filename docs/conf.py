"""How Sphinx builds the documentation (`make docs`): pages from the whole repository."""

import os

from sphinx.ext.napoleon import Config, GoogleDocstring

os.environ["JAX_PLATFORMS"] = "cpu"

project = "edl_jax"
author = "The edl_jax authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**.md",
    "results/README.md",
    "results/*/README.md",
    "results/benchmarks/against.md",
    "results/benchmarks/gradient_fit.md",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "edl_jax"
html_copy_source = False
html_extra_path = ["site_root"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}


def _google_style(_app, what, _name, _obj, _options, lines: list[str]) -> None:
    """Read docstrings as Google's, but a field's as it is: its colon is no type's."""
    if what != "attribute":
        lines[:] = GoogleDocstring(lines, Config(napoleon_use_ivar=True)).lines()


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _google_style)
