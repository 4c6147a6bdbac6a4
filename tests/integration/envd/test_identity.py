"""Whom a command runs as, and whom envd itself goes on running as."""

import base64
import contextlib
import os
import time
from pathlib import Path

import pytest

from opene2b.envd.users import Users

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root"),
]

AS_NOBODY = {"Authorization": "Basic " + base64.b64encode(b"nobody:").decode()}


def output_of(events: list[dict]) -> str:
    data = [
        event["event"]["data"]["stdout"] for event in events if "data" in event.get("event", {})
    ]
    return b"".join(map(base64.b64decode, data)).decode()


def status_fields(text: str) -> dict[str, list[str]]:
    return {name: value.split() for name, _, value in (s.partition(":") for s in text.splitlines())}


def test_a_command_has_the_identity_of_its_user_and_no_rights_besides(envd):
    user = Users().find("nobody")
    process = {"cmd": "/bin/cat", "args": ["/proc/self/status"], "cwd": "/"}
    events = envd.stream("process.Process/Start", {"process": process}, **AS_NOBODY)
    seen = status_fields(output_of(events))

    assert seen["Uid"] == [str(user.uid)] * 4
    assert seen["Gid"] == [str(user.gid)] * 4
    assert sorted(map(int, seen["Groups"])) == sorted(user.groups)
    assert {int(seen[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}


def test_a_terminal_has_the_identity_of_its_user(envd):
    start = {
        "process": {"cmd": "/bin/cat", "args": ["/proc/self/status"], "cwd": "/"},
        "pty": {"size": {"rows": 24, "cols": 80}},
    }
    events = envd.stream("process.Process/Start", start, **AS_NOBODY)
    data = [event["event"]["data"]["pty"] for event in events if "data" in event.get("event", {})]
    seen = status_fields(b"".join(map(base64.b64decode, data)).decode())

    assert seen["Uid"] == [str(Users().find("nobody").uid)] * 4
    assert int(seen["CapEff"][0], 16) == 0


def identities(pid: int) -> list[list[str]]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(status_fields((task / "status").read_text())["Uid"])
    return found


def test_envd_stays_who_it_was(envd):
    process = {"cmd": "/bin/true", "cwd": "/"}
    envd.stream("process.Process/Start", {"process": process}, **AS_NOBODY)
    until = time.monotonic() + 5
    # The thread that started it has been joined; the kernel takes it off the list a moment later.
    while (tasks := identities(envd.pid)) != [["0"] * 4] and time.monotonic() < until:
        time.sleep(0.01)

    assert tasks == [["0"] * 4]


def test_a_directory_that_is_closed_to_the_user_is_closed_to_the_command(envd, tmp_path):
    tmp_path.chmod(0o700)
    start = {"process": {"cmd": "/bin/true", "cwd": str(tmp_path)}, "stdin": False}
    end = envd.stream("process.Process/Start", start, **AS_NOBODY)[-1]["END"]

    assert end["error"]["code"] == "permission_denied"
    assert str(tmp_path) in end["error"]["message"]
