"""Settings of the evolution compared, over many seeds, and what a loss's metrics say downstream."""
