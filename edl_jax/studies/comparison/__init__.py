"""Losses compared: the same trainings with each, over the same seeds."""
