"""Measurements of `edl_jax`, beside what else could do the work."""
