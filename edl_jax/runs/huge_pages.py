"""Huge pages for the memory of XLA's CPU backend; imports nothing that takes long.

XLA asks for its memory anew in every training step, and the kernel clears it page by page: a third
of the time of a ResNet-8 step on a CPU (docs/speed.md). glibc reads the setting at its start.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Become the same command with huge pages, where it has none: before threads, before JAX."""
    if wanted(os.environ):
        with contextlib.suppress(OSError):  # the program can do without it
            environment = {**os.environ, VARIABLE: SETTING}
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def wanted(environment: Mapping[str, str], kernel: Path = _KERNEL) -> bool:
    """Whether the kernel gives huge pages on request, and nothing, be it empty, is set already."""
    if VARIABLE in environment or not sys.executable:
        return False
    try:
        return "[madvise]" in kernel.read_text()
    except OSError:
        return False
