"""Shared settings of the tests."""

import hypothesis

# Compilation makes single examples slow, and a failure in CI must be one that can be repeated.
hypothesis.settings.register_profile(
    "edl", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("edl")
