"""The losses to choose by name; every file registers its own."""
