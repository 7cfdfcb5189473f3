"""Tables of named parts to which users may add their own."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from edl_jax.errors import ConfigError, shortened

Part = TypeVar("Part")
Registered = TypeVar("Registered")


class Registry(dict[str, Part]):
    """A table of parts by name, in order of registration; docs/extend.md has examples.

    A part registered from a script can be named in a configuration like one of the package's own.
    """

    def __init__(self, kind: str, part: Any = Callable):
        """`kind` says in errors what the table holds, "severity" for one; `part` is its type."""
        super().__init__()
        self.kind, self._type = kind, part
        self._protected: frozenset[str] = frozenset()

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator that adds a part under `name`, an identifier, and gives it back unchanged.

        A part of your own under that name is replaced, as when a cell of a notebook runs again;
        the package's own cannot be.
        """
        if not (isinstance(name, str) and name.isidentifier()):
            raise ConfigError(
                f"{name!r} cannot name a {self.kind}; expected an identifier, such as my_part."
            )
        if self.is_protected(name):
            raise ConfigError(f"there is a {self.kind} {name!r} already; choose another name.")

        def add(part: Registered) -> Registered:
            if not isinstance(part, self._type):
                kind = "function or class" if self._type is Callable else self._type.__name__
                raise ConfigError(
                    f"the {self.kind} {name!r} is {shortened(repr(part))}; expected a {kind}."
                )
            self[name] = part  # pyright: ignore[reportArgumentType]
            return part

        return add

    def protect(self, *names: str) -> None:
        """Make the parts there are, and other names, the package's own: they cannot be replaced."""
        self._protected = frozenset([*self, *names])

    def is_protected(self, name: str) -> bool:
        """Whether the part of that name is one of the package's own."""
        return name in self._protected

    def __getitem__(self, name: str) -> Part:
        try:
            return super().__getitem__(name)
        except (KeyError, TypeError):  # TypeError: of what is not hashable
            raise ConfigError(
                f"there is no {self.kind} {name!r}; expected one of {', '.join(self)}."
            ) from None


def load_parts(package: str, *tables: Registry[Any]) -> None:
    """Import every file of a package; what is in its tables then cannot be replaced."""
    for file in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(file.name)
    for table in tables:
        table.protect()
