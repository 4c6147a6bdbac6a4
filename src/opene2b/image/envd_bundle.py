"""envd as one directory that starts in any root filesystem: with its own interpreter, C library and loader.

For sandboxes that the node cannot enter (a kernel of their own, another machine's engine), mounted read-only at any
path. Nothing is compiled: the modules that envd imports, the interpreter that runs this, and the shared libraries that
they need are copied. The loader is named on the command line, so no variable of the bundle reaches what envd
starts.

`python -m opene2b.image.envd_bundle DIRECTORY` builds it.
"""

import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opene2b.core.errors import Internal, Unsupported

MANIFEST = "bundle.json"
MODULES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
LIBRARIES = "lib"
PROGRAM = "bin/python3"
ENTRY = "from opene2b.envd.__main__ import main; main()"
NEEDED = re.compile(r"^\s*(?:(\S+) => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)

# What envd has imported when it serves, and what the interpreter looks up by name only then.
LIST_MODULES = """
import asyncio, concurrent.futures.thread, encodings.ascii, encodings.idna, encodings.latin_1, encodings.utf_8
import gettext, importlib.util, json, shutil, sys, traceback
import opene2b.envd.__main__
files = {}
for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None)
    if file and name != "__main__":
        files[name] = [file, hasattr(module, "__path__")]
print(json.dumps(files))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    directory: Path
    loader: str
    """Name of the dynamic loader among the libraries."""

    def command(self, *arguments: str, place: str | None = None) -> list[str]:
        """How to start it.

        Args:
            place: Where the directory is, as the sandbox sees it; default: where it is here.
        """
        root = place or str(self.directory)
        return [
            f"{root}/{LIBRARIES}/{self.loader}",
            "--library-path",
            f"{root}/{LIBRARIES}",
            # The interpreter finds its modules by its own name.
            "--argv0",
            f"{root}/{PROGRAM}",
            f"{root}/{PROGRAM}",
            "-I",
            "-S",
            "-B",
            "-c",
            ENTRY,
            *arguments,
        ]

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())


def load(directory: Path) -> Bundle:
    return Bundle(
        directory=directory, loader=json.loads((directory / MANIFEST).read_text())["loader"]
    )


def build(directory: Path) -> Bundle:
    """Make the bundle; a directory that is there is replaced, in the last step.

    Raises:
        Unsupported: not a glibc machine.
        Internal: a part is missing.
    """
    scratch = directory.with_name(directory.name + ".new")
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "bin").mkdir(parents=True)
    (scratch / MODULES / "lib-dynload").mkdir(parents=True)
    program = Path(sys.executable).resolve()
    shutil.copy2(program, scratch / PROGRAM)
    extensions = [Path(path) for path in copy_modules(scratch / MODULES)]
    loader = copy_libraries([program, *extensions], scratch / LIBRARIES)
    strip(scratch)
    (scratch / MANIFEST).write_text(
        json.dumps({"loader": loader, "python": sys.version.split()[0]}) + "\n"
    )
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    scratch.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
    return load(directory)


def copy_modules(target: Path) -> Iterable[str]:
    """Copy what envd imports, compiled; returns the extension modules."""
    listed = subprocess.run(
        [sys.executable, "-c", LIST_MODULES], capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        raise Internal("envd cannot be imported here", detail=listed.stderr[-2000:])
    extensions = []
    for name, (file, is_package) in json.loads(listed.stdout).items():
        source = Path(file)
        parts = name.split(".")
        place = target.joinpath(*parts)
        if source.suffix == ".so":
            copy = (target / "lib-dynload" if len(parts) == 1 else place.parent) / source.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
            extensions.append(file)
            continue
        compiled = place / "__init__.pyc" if is_package else place.with_name(parts[-1] + ".pyc")
        compiled.parent.mkdir(parents=True, exist_ok=True)
        py_compile.compile(
            file,
            cfile=str(compiled),
            # The name in tracebacks: no path of the machine that built it.
            dfile="/".join(parts) + ".py",
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    # The interpreter looks for its library by this file, and says so where it is missing.
    landmark = Path(sysconfig.get_path("stdlib")) / "os.py"
    shutil.copy2(landmark, target / "os.py")
    return extensions


def copy_libraries(programs: Iterable[Path], target: Path) -> str:
    """Copy every shared library that the programs need; returns the name of the loader."""
    found: dict[str, Path] = {}
    for program in programs:
        said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
        for name, path in NEEDED.findall(said.stdout):
            found.setdefault(Path(name or path).name, Path(path))
    loaders = [name for name in found if name.startswith("ld-linux")]
    if len(loaders) != 1:
        raise Unsupported("the bundle needs a machine with glibc to be built on")
    for name, path in found.items():
        shutil.copy2(os.path.realpath(path), target / name)
    return loaders[0]


def strip(directory: Path) -> None:
    """Leave out symbols that only a debugger reads, where the tool is there: half of the size."""
    tool = shutil.which("strip")
    if tool is None:
        return
    for path in directory.rglob("*"):
        if path.is_file() and (".so" in path.name or path.name == "python3"):
            # Not all can be stripped (the loader of some systems); it works as it is.
            subprocess.run([tool, "--strip-unneeded", str(path)], capture_output=True, check=False)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m opene2b.image.envd_bundle DIRECTORY")
    bundle = build(Path(sys.argv[1]))
    print(f"{bundle.directory}: {bundle.size_bytes() / (1 << 20):.1f} MiB")


if __name__ == "__main__":
    main()
