"""Stage 3b: synthetic tasks, on which a loss is tried by training small classifiers with it."""

from edl_jax.tasks.config import TaskConfig
from edl_jax.tasks.learner import Tasks, draw_tasks, task_errors

__all__ = ["TaskConfig", "Tasks", "draw_tasks", "task_errors"]
