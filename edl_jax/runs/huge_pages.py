"""Huge pages for the memory of XLA's CPU backend; imports nothing that takes long.

XLA asks for the memory of a training step anew in every step, and the kernel then clears it page by
page: a third of the processor time of a ResNet-8 step, in pages of 4 KiB. With huge pages that is
next to nothing (docs/speed.md). glibc, from 2.35 on, reads the setting when a program starts.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Become the same command with glibc set to ask for huge pages, where that is needed.

    Call it first thing in a program, before threads and before JAX.
    """
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
