"""Debian from nothing: mmdebstrap into a directory, then what makes it fit for a sandbox.

mmdebstrap runs as root in namespaces of its own, so that killing us kills it with everything it
started, and its mounts (proc and sys inside the new tree) never appear on the host.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from opene2b.core.errors import DeadlineExceeded, Internal, OutOfSpace, Unsupported
from opene2b.image import provision
from opene2b.image.progress import LogReader, Progress
from opene2b.image.sources import Found, public
from opene2b.linux.rooted import Root

RECIPE = "2"
"""Raise it when the tree made from the same packages changes: part of the layer's id."""
DEADLINE_S = 1800.0
REASON_CHARACTERS = 200
"""Of a line of the log in a message: mmdebstrap quotes commands with a hundred files."""
DPKG_CONFIG = """\
# Kept in the guest: what is installed later leaves the same things out.
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/lintian/*
# A sandbox that dies while it installs is thrown away: no need to wait for the disk.
force-unsafe-io
# `pip install` works as it does in the original's base image.
path-exclude=/usr/lib/python3*/EXTERNALLY-MANAGED
"""
# After the essential packages are unpacked and before dpkg installs them over themselves: given as
# --dpkgopt instead, mmdebstrap filters each of those 83 archives through a Python program (8 s).
EXTRACT_HOOK = """\
set -eu
cat > "$1/etc/dpkg/dpkg.cfg.d/opene2b"
find "$1/usr/share/doc" -depth ! -name copyright ! -type d -delete
rm -rf "$1/usr/share/man" "$1/usr/share/info" "$1/usr/share/lintian"
find "$1/usr/share/locale" -mindepth 1 ! -name locale.alias -depth -delete
"""
APT_CONFIG = 'Acquire::Languages "none";\n'
POLICY = (
    "#!/bin/sh\n# No init runs here: packages must not try to start their services.\nexit 101\n"
)


async def bootstrap(
    target: Path,
    *,
    found: Found,
    packages: tuple[str, ...],
    scratch: Path,
    log: Path,
    progress: Callable[[Progress], None],
) -> None:
    """Install Debian into `target`, an empty directory or one that does not exist.

    Args:
        scratch: Existing directory of the caller for temporary files, on the same kind of disk.
        log: Gets everything that mmdebstrap, apt and dpkg print.
    Raises:
        Unsupported: not root, or a tool is missing.
        OutOfSpace: the disk is full.
        Internal: anything else; the message says what to do, `detail` has the end of the log.
    """
    if os.geteuid() != 0:
        raise Unsupported("building the base template needs root: run it with sudo")
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("unshare", "util-linux")):
        if shutil.which(tool) is None:
            raise Unsupported(f"{tool} is not installed: apt-get install {package}")
    config = scratch / "dpkg.cfg"
    config.write_text(DPKG_CONFIG)
    hook = scratch / "extracted.sh"
    hook.write_text(EXTRACT_HOOK)
    command = [
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"),
        *("--kill-child=KILL", "--mount-proc", "mmdebstrap", "--verbose", "--mode=root"),
        *("--variant=minbase", "--format=directory", "--include", ",".join(packages)),
        *("--aptopt", 'APT::Install-Recommends "false"', "--aptopt", APT_CONFIG.strip()),
        # The unprivileged user of apt cannot enter the directory above, which is closed to others.
        *("--aptopt", 'APT::Sandbox::User "root"'),
        *("--aptopt", 'Dpkg::Use-Pty "false"'),
        *("--aptopt", 'Acquire::Retries "2"', "--aptopt", 'Acquire::http::Timeout "30"'),
        *("--keyring", str(found.keyring)),
        f'--extract-hook=sh {shlex.quote(str(hook))} "$1" < {shlex.quote(str(config))}',
        *(found.suite, str(target)),
        *(source.line(found.keyring) for source in found.sources),
    ]
    environment = {**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C.UTF-8"}
    reader = LogReader()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as copy:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            limit=1 << 20,
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                assert process.stdout is not None
                async for raw in process.stdout:
                    line = raw.decode(errors="replace").rstrip()
                    copy.write(line + "\n")
                    if (step := reader.feed(line)) is not None:
                        progress(step)
                code = await process.wait()
        except TimeoutError as exc:
            raise DeadlineExceeded(
                f"building the base template took longer than {DEADLINE_S:.0f} s",
                detail="\n".join(reader.tail),
            ) from exc
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await asyncio.shield(process.wait())
    if code != 0:
        raise explain(code, reader.tail, found, log)


def explain(code: int, tail: list[str], found: Found, log: Path) -> Internal | OutOfSpace:
    """The remedy for the ways in which mmdebstrap is known to end."""
    text = "\n".join(tail)
    mirrors = ", ".join(sorted({public(source.uri) for source in found.sources}))
    if "No space left on device" in text or "don't have enough free space" in text:
        return OutOfSpace(
            "no space left while building the base template: it needs 1.5 GB where OPENE2B_HOME is",
            detail=text,
        )
    unreachable = ("Could not resolve", "Could not connect", "Connection failed", "Unable to fetch")
    if any(sign in text for sign in (*unreachable, "Failed to fetch", "Connection timed out")):
        return Internal(
            f"packages of the base template could not be downloaded from {mirrors}: check the"
            f" network of this machine, or set OPENE2B_BASE_MIRROR; the log is {log}",
            reason="base_mirror_unreachable",
            detail=text,
            retryable=True,
        )
    # The first complaint is the cause; mmdebstrap's own, after it, only say what was given up.
    first = next((line for line in tail if line.startswith(("E:", "dpkg: error"))), "")
    return Internal(
        f"mmdebstrap ended with code {code} ({first[:REASON_CHARACTERS] or 'no reason given'}); the log is {log}",
        reason="base_build",
        detail=text,
    )


def finish(tree: Path, found: Found) -> None:
    """Turn the bootstrapped tree into the base of sandboxes. Blocking; run it in a thread."""
    with Root(tree) as root:
        provision.provision(root)
        lines = [f"{source.line()}\n" for source in found.sources]
        # A password for the mirror belongs to the operator, not into every sandbox.
        text = "".join(
            line.replace(source.uri, public(source.uri))
            for line, source in zip(lines, found.sources, strict=True)
        )
        root.write("/etc/apt/sources.list", text)
        root.write("/etc/apt/apt.conf.d/90opene2b", APT_CONFIG)
        root.remove("/etc/apt/apt.conf.d/99mmdebstrap")
        root.write("/usr/sbin/policy-rc.d", POLICY, mode=0o755)
        root.write("/etc/default/locale", "LANG=C.UTF-8\n")
        for path in ("/etc/machine-id", "/var/lib/dbus/machine-id", "/.dockerenv"):
            root.remove(path)
        for path in ("/dev", "/run", "/tmp", "/var/log/apt", "/var/cache/apt/archives"):  # noqa: S108
            root.empty(path)
        for path in ("/var/lib/apt/lists", "/var/cache/ldconfig"):
            root.empty(path)
        for name in ("dpkg.log", "alternatives.log", "bootstrap.log"):
            root.remove(f"/var/log/{name}")
        for path in ("/var/cache/debconf/templates.dat-old", "/var/cache/debconf/config.dat-old"):
            root.remove(path)
        for name in ("passwd-", "group-", "shadow-", "gshadow-", ".pwd.lock"):
            root.remove(f"/etc/{name}")
        for directory in ("/var/lib/apt/lists/partial", "/var/cache/apt/archives/partial"):
            os.close(root.directory(directory, create=True))
