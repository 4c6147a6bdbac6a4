"""Make a root file system into what E2B clients expect: its users and a few files.

The default user is `user`, uid 1000, home /home/user, with sudo that asks for no password; root
can be used too. Source: E2B contract, ambient behaviour of the guest.
"""

import os
import stat
from dataclasses import dataclass

from opene2b.core.errors import InvalidArgument
from opene2b.linux.rooted import Root

USER, UID, GID, HOME = "user", 1000, 1000, "/home/user"
HOSTNAME = "e2b.local"
SHELLS = ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash")
SLOW_IDENTITY = '"$(id -u)"'
QUICK_IDENTITY = '"${EUID:-$(id -u)}"'
"""bash knows it; other shells, which have no such variable, ask as before."""
SKELETON = (".bashrc", ".profile", ".bash_logout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the image ends up with for the default user."""

    uid: int
    gid: int
    home: str
    sudo: bool
    """Whether `sudo` is there to be used without a password."""


def provision(root: Root) -> Account:
    """Repeatable: a tree that has all this already is left as it is.

    Raises:
        InvalidArgument: the image lacks something a sandbox cannot do without; the message names
            it and what to add to the image.
    """
    shell = next((path for path in SHELLS if root.exists(path)), None)
    if shell is None:
        # wire: the clients run every command as `/bin/bash -l -c ...`
        raise InvalidArgument(
            "the image has no bash, with which clients run every command:"
            " install bash in it (for example `apk add bash` or `apt-get install bash`)"
        )
    if shell != "/bin/bash" and not root.exists("/bin/bash"):
        with root.parent("/bin/bash", create=True) as (directory, name):
            os.symlink(shell, name, dir_fd=directory)
    account = add_user(root)
    for path in ("/tmp", "/var/tmp"):  # noqa: S108 - inside the tree
        fd = root.directory(path, create=True)
        os.fchmod(fd, 0o1777)
        os.close(fd)
    for path in ("/proc", "/sys", "/dev", "/run", "/root"):
        os.close(root.directory(path, create=True))
    root.write("/etc/hostname", f"{HOSTNAME}\n")
    # sudo looks its own host name up and complains at length when it is not there.
    root.write(
        "/etc/hosts",
        f"127.0.0.1\tlocalhost\n127.0.1.1\t{HOSTNAME} e2b\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\n",
    )
    # The runtime writes each sandbox's own; a link into /run would lead nowhere there.
    root.write("/etc/resolv.conf", "")
    quicken_profile(root)
    return account


def quicken_profile(root: Root) -> None:
    """Let login shells tell who they are without starting `id`: clients run every command in one."""
    text = root.read("/etc/profile")
    if text is not None and SLOW_IDENTITY in text:
        mode = stat.S_IMODE(root.stat("/etc/profile").st_mode)
        root.write("/etc/profile", text.replace(SLOW_IDENTITY, QUICK_IDENTITY), mode=mode)


def add_user(root: Root) -> Account:
    passwd = lines_of(root, "/etc/passwd")
    group = lines_of(root, "/etc/group")
    if not any(line.startswith("root:") for line in passwd):
        passwd.insert(0, "root:x:0:0:root:/root:/bin/bash")
    if not any(line.startswith("root:") for line in group):
        group.insert(0, "root:x:0:")
    entry = next((line.split(":") for line in passwd if line.startswith(f"{USER}:")), None)
    if entry is not None:
        account = existing(root, entry)
    else:
        taken = next((line for line in passwd if field(line, 2) == str(UID)), None)
        if taken is not None:
            # Images for developers often have their own uid 1000 (`node`, `ubuntu`). Two names for
            # one uid is allowed; ours comes first so that the number is shown as `user`.
            passwd.insert(passwd.index(taken), passwd_line())
        else:
            passwd.append(passwd_line())
        if not any(line.startswith(f"{USER}:") for line in group):
            group.append(f"{USER}:x:{GID}:")
        account = Account(uid=UID, gid=GID, home=HOME, sudo=has_sudo(root))
    root.write("/etc/passwd", "".join(f"{line}\n" for line in passwd))
    root.write("/etc/group", "".join(f"{line}\n" for line in group))
    add_shadow(root)
    make_home(root, account)
    if account.sudo:
        rules = root.read("/etc/sudoers") or "root ALL=(ALL:ALL) ALL\n"
        if "includedir /etc/sudoers.d" not in rules:
            rules = f"{rules.rstrip()}\n@includedir /etc/sudoers.d\n"
            root.write("/etc/sudoers", rules, mode=0o440)
        os.close(root.directory("/etc/sudoers.d", create=True))
        root.write("/etc/sudoers.d/90-opene2b", f"{USER} ALL=(ALL:ALL) NOPASSWD:ALL\n", mode=0o440)
    return account


def passwd_line() -> str:
    return f"{USER}:x:{UID}:{GID}::{HOME}:/bin/bash"


def existing(root: Root, entry: list[str]) -> Account:
    try:
        uid, gid, home = int(entry[2]), int(entry[3]), entry[5]
    except (IndexError, ValueError) as exc:
        raise InvalidArgument(f"the image's /etc/passwd has a broken line for {USER!r}") from exc
    return Account(uid=uid, gid=gid, home=home or HOME, sudo=has_sudo(root))


def has_sudo(root: Root) -> bool:
    return any(root.exists(path) for path in ("/usr/bin/sudo", "/bin/sudo", "/usr/local/bin/sudo"))


def add_shadow(root: Root) -> None:
    """Keep the image's lines; give ours a locked password: sudo refuses accounts without a line."""
    text = root.read("/etc/shadow")
    if text is None:
        return
    lines = text.splitlines()
    # `*` cannot be typed: nobody logs in as root with a password; sudo and the runtime still can.
    lines = ["root:*:" + line.split(":", 2)[2] if blank_root(line) else line for line in lines]
    for name in ("root", USER):
        if not any(line.startswith(f"{name}:") for line in lines):
            lines.append(f"{name}:*:19000:0:99999:7:::")
    info = root.stat("/etc/shadow")
    root.write("/etc/shadow", "".join(f"{line}\n" for line in lines), mode=0o640)
    with root.parent("/etc/shadow") as (directory, name):
        os.chown(name, 0, info.st_gid, dir_fd=directory, follow_symlinks=False)


def blank_root(line: str) -> bool:
    parts = line.split(":")
    return parts[0] == "root" and len(parts) > 2 and parts[1] == ""


def make_home(root: Root, account: Account) -> None:
    if not root.exists(account.home):
        fd = root.directory(account.home, create=True)
        try:
            os.fchmod(fd, 0o755)
        finally:
            os.close(fd)
        for name in SKELETON:
            text = root.read(f"/etc/skel/{name}")
            if text is not None:
                root.write(f"{account.home}/{name}", text)
                with root.parent(f"{account.home}/{name}") as (directory, leaf):
                    os.chown(
                        leaf, account.uid, account.gid, dir_fd=directory, follow_symlinks=False
                    )
    fd = root.directory(account.home)
    try:
        os.fchown(fd, account.uid, account.gid)
    finally:
        os.close(fd)


def lines_of(root: Root, path: str) -> list[str]:
    return [line for line in (root.read(path) or "").splitlines() if line.strip()]


def field(line: str, index: int) -> str:
    parts = line.split(":")
    return parts[index] if len(parts) > index else ""
