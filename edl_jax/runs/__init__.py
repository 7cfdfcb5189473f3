"""What a run needs around its computation: its folder, checkpoints, signals and processes."""
