"""`opene2b down`: end every sandbox of this home and remove what they used. Works with and without a server."""

import asyncio
import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from opene2b.cli import agent as agents
from opene2b.cli import layout, serve, setup_base
from opene2b.cli.config import Config
from opene2b.core.errors import WrongState
from opene2b.core.paths import Home
from opene2b.image import site
from opene2b.linux import cgroups
from opene2b.node import firewall

AGENT_ENV = {"OPENE2B_WARM_SLOTS": "0"}
"""It only ends things: no network places ahead."""


def run(config: Config, *, purge: bool = False) -> None:
    layout.need_root("opene2b down")
    home = config.home
    if layout.is_held(home):
        if purge:
            raise WrongState("a server runs with this OPENE2B_HOME: stop it before `down --purge`")
        print(ended(asyncio.run(end_with_server(home))))
        print("the server goes on; stop it as well (Ctrl-C) to remove what it holds itself")
        return
    if not home.root.exists():
        print(f"nothing to do: there is no {home.root}")
        return
    with layout.held(home):
        serve.end_left_behind(home)
        if home.node_socket.exists() and asyncio.run(is_answered(home)):
            # `opene2b node`, started by hand: it is not ours to stop.
            print(ended(asyncio.run(end_with_server(home))))
            print("a node agent goes on; stop it as well to remove what it holds itself")
            return
        if has_leftovers(config):
            layout.make(home)
            print(ended(asyncio.run(end_with_own_agent(home))))
        else:
            print("no sandbox is left")
        remove_empty_groups()
        for path in removable(home, purge=purge):
            site.remove(path)
            print(f"removed {path}")


def ended(count: int) -> str:
    return f"ended {count} sandbox{'' if count == 1 else 'es'}"


async def is_answered(home: Home) -> bool:
    async with agents.connected(home) as agent:
        return await agent.answers(2.0)


async def end_with_server(home: Home) -> int:
    async with agents.connected(home) as agent:
        return await agent.kill_all()


async def end_with_own_agent(home: Home) -> int:
    """An agent takes over what runs, ends it, and at its own end puts the host back as it found it."""
    async with agents.started(home, AGENT_ENV) as agent:
        return await agent.kill_all()


def remove_empty_groups() -> None:
    """The control groups above those of sandboxes; they stay while another home has sandboxes in them."""
    for directory in cgroups.named("/opene2b", cgroups.discover()):
        try:
            directory.rmdir()
        except OSError as exc:
            if exc.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
                raise


def has_leftovers(config: Config) -> bool:
    """Whether an agent of this home has anything to end or to put back."""
    home = config.home
    if any(home.node_socket.parent.glob("*.sock")) or any(home.run.glob("cgroups-*")):
        return True
    if any(True for name in ("sandboxes", "trash") for _ in (home.node / name).glob("*")):
        return True
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    return firewall.table_name(config.subnet) in tables.stdout.split()


def removable(home: Home, *, purge: bool) -> Iterator[Path]:
    """What goes. The pid file's directory last: while it is there, no other server takes the home."""
    if purge:
        need_no_builder(home)
        for path in (home.images, home.layers, home.database.parent, home.node, home.logs):
            if path.exists():
                yield path
        if home.first_key.exists():
            yield home.first_key
    if home.run.exists():
        yield home.run


def need_no_builder(home: Home) -> None:
    """Raises WrongState while the base template is being built: its parts would be pulled from under it."""
    lock = home.images / setup_base.BASE / "lock"
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WrongState("the base template is being built: stop that first") from None
    finally:
        os.close(fd)
