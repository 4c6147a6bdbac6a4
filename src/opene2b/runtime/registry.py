"""Finds a runtime driver by name, among those that installed packages announce.

A driver announces a factory in the entry point group `opene2b.runtimes`; the factory takes `home` and
`oci_binary` by name and returns a `Runtime`, not yet opened. A driver ignores what it has no use for.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from opene2b.core.errors import InvalidArgument, Unsupported
from opene2b.core.paths import Home
from opene2b.runtime.protocol import Runtime

GROUP = "opene2b.runtimes"


class Factory(Protocol):
    def __call__(self, *, home: Home, oci_binary: str | None) -> Runtime: ...


def announced() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def create(name: str, *, home: Home, oci_binary: str | None) -> Runtime:
    """Raises InvalidArgument, which lists the known names; Unsupported when a driver cannot be imported."""
    known = announced()
    if name not in known:
        raise InvalidArgument(
            f"runtime {name!r} is not known: it must be one of {', '.join(sorted(known)) or 'none'}",
            reason="unknown_runtime",
        )
    try:
        factory: Factory = known[name].load()
    except ImportError as exc:
        raise Unsupported(
            f"runtime {name!r} cannot be loaded: {exc}", reason="runtime_not_loadable"
        ) from exc
    return factory(home=home, oci_binary=oci_binary)
