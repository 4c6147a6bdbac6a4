"""The arrows between packages, as ARCHITECTURE.md draws them."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/opene2b"

FOUNDATION = {"core", "gen", "linux", "connect", "store", "runtime", "image"}
SERVICES = {"node", "scheduler", "proxy", "api"}
MAY_IMPORT = {
    "core": set(),
    "gen": set(),
    "linux": {"core"},
    "connect": {"core"},
    "store": {"core"},
    "image": {"core", "linux"},
    # The OCI driver writes what the fork server reads: its plan, nothing of its running parts (see below).
    "runtime": {"core", "linux", "forkserver"},
    "envd": {"core", "gen", "connect", "linux"},
    "forkserver": {"core", "connect", "linux", "envd"},
    "node": FOUNDATION,
    "scheduler": FOUNDATION - {"runtime", "image", "linux", "connect"},
    "proxy": {"core", "linux", "connect"},
    "api": {"core", "store", "scheduler"},
    "testing": FOUNDATION | {"node"},
    "cli": FOUNDATION | SERVICES | {"testing"},
}
"""Package -> packages of ours that it may import, itself always."""

ENVD_THIRD_PARTY = {"msgspec", "httptools", "h2"}


def modules(package: str) -> Iterator[Path]:
    yield from sorted((SOURCE / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of imported modules; `from opene2b.x import y` gives `opene2b.x.y`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def ours(path: Path) -> Iterator[str]:
    """Top-level packages of ours that a module imports."""
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "opene2b" and len(parts) > 1 and (SOURCE / parts[1]).is_dir():
            yield parts[1]


def third_party(package: str) -> set[str]:
    tops = {name.split(".")[0] for path in modules(package) for name in imported(path)}
    return {top for top in tops if top != "opene2b" and top not in sys.stdlib_module_names}


def test_every_package_has_its_row():
    found = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}

    assert found == set(MAY_IMPORT)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_one_way(package):
    wrong = [
        f"{path.relative_to(SOURCE)} imports {other}"
        for path in modules(package)
        for other in ours(path)
        if other != package and other not in MAY_IMPORT[package]
    ]

    assert wrong == []


def test_runtimes_know_of_the_fork_server_only_what_they_tell_it():
    allowed = {"opene2b.forkserver.plan", "opene2b.forkserver.enter", "opene2b.forkserver.profile"}
    names = {name for path in modules("runtime") for name in imported(path)}
    wrong = {
        name
        for name in names
        if name.startswith("opene2b.forkserver.")
        and name not in allowed
        and name.rpartition(".")[0] not in allowed
    }

    assert wrong == set()


@pytest.mark.parametrize("package", ["core", "linux"])
def test_the_foundation_uses_the_standard_library_only(package):
    assert third_party(package) == set()


def test_envd_and_what_it_is_forked_with_import_exactly_their_short_list():
    found = third_party("envd") | third_party("forkserver") | third_party("connect")

    assert found == ENVD_THIRD_PARTY
