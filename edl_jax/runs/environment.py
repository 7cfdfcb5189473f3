"""What a run runs with: versions, commit and machine, kept beside its results."""

import json
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from edl_jax.errors import RunFolderError, shortened

_LIBRARIES = ("edl_jax", "jax", "jaxlib", "flax", "optax", "evosax", "numpy")
_LOGGER = logging.getLogger(__name__)
_MOST_TOLD = 6  # differences


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def version(library: str) -> str:
    """Version of a library."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str | None:
    """The last commit that changed this package, None where it is not in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "log", "-1", "--format=%H", "--", "."]
    try:
        log = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return log.stdout.strip() or None


def described() -> dict[str, Any]:
    """What a new run runs with, as JSON data."""
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "backend": device.platform,
        "device": device.device_kind,
        "device_count": jax.device_count(),
        "machine": platform.machine(),
    }


def noted(path: Path, content: bytes) -> dict[str, Any] | None:
    """What `environment.json`, which holds `content`, is to hold now; None if nothing is new.

    Each commit that worked on the run, with its versions, is in `resumed_with`; a line says so.
    """
    now = {"commit": commit(), "versions": versions()}
    try:
        environment = json.loads(content)
        resumed = environment.setdefault("resumed_with", [])
        before = resumed[-1] if resumed else {name: environment.get(name) for name in now}
        # None: git cannot be asked, perhaps for now.
        if before == now or (now["commit"] is None and before["versions"] == now["versions"]):
            return None
        resumed.append(now)
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise RunFolderError(
            f"{path} is damaged ({shortened(error)}); remove that file to resume without it."
        ) from error
    _LOGGER.warning(
        "%s resumes with other code than worked on it before (%s): its result may be neither's.",
        path.parent,
        difference(before, now),
    )
    return environment


def difference(one: object, other: object, there: str = "there", here: str = "here") -> str:
    """The first places where two JSON values differ: `a.b is 1 there and 2 here`."""
    differences = [
        f"{name} is {shortened(repr(first), 100)} {there} and {shortened(repr(second), 100)} {here}"
        for name, first, second in _differences(one, other)
    ]
    if len(differences) > _MOST_TOLD:
        differences[_MOST_TOLD:] = [f"{len(differences) - _MOST_TOLD} more"]
    return "; ".join(differences)


def _differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, object, object]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({**one, **other}):
            yield from _differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif one != other:
        yield name, one, other
