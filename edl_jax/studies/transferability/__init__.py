"""Outputs of real trainings beside the synthetic pairs."""
