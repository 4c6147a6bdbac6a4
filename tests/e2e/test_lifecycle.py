"""Restarts, kills and leftovers of a real server."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest
import real_server
from e2b import Sandbox

LIFETIMES = 200


def processes_running(word: str, home: str) -> list[int]:
    """Ids of `python -m opene2b WORD` processes of this home."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().split(b"\0")
            environment = (cmdline.parent / "environ").read_bytes()
        except OSError:
            continue
        ours = word.encode() in words and b"opene2b" in b" ".join(words[:4])
        if ours and f"OPENE2B_HOME={home}".encode() in environment.split(b"\0"):
            found.append(int(cmdline.parent.name))
    return found


def wait_until_served(server: real_server.Server) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            status, _, _ = server.request("GET", "/v2/sandboxes")
            if status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    pytest.fail("the server did not come back")


@pytest.mark.parametrize("is_paused", [False, True])
@pytest.mark.parametrize("word", ["api", "proxy", "node"])
def test_a_sandbox_does_not_notice_the_death_of_a_server_process(server, word, is_paused):
    sandbox = Sandbox.create(timeout=300)
    sandbox.commands.run("sleep 1000", background=True, timeout=0)
    sandbox.files.write("kept", "yes")
    before = sandbox.commands.run("pgrep -x sleep").stdout
    if is_paused:
        sandbox.pause()

    victims = processes_running(word, server.env["OPENE2B_HOME"])
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while set(processes_running(word, server.env["OPENE2B_HOME"])) <= set(victims):
        assert time.monotonic() < until, f"{word} was not started again"
        time.sleep(0.05)
    wait_until_served(server)
    after = ""
    while time.monotonic() < until:
        try:
            after = (
                Sandbox.connect(sandbox.sandbox_id).commands.run("pgrep -x sleep; cat kept").stdout
            )
            break
        except Exception:
            time.sleep(0.1)

    assert victims
    assert after == before + "yes"
    assert sandbox.kill() is True


def test_nothing_is_left_after_many_creates_and_kills(server):
    before = set(real_server.leftovers())
    for _ in range(LIFETIMES // 10):
        made = [Sandbox.create(timeout=60) for _ in range(10)]
        assert all(sandbox.kill() for sandbox in made)
    until = time.monotonic() + 10
    while set(real_server.leftovers()) - before and time.monotonic() < until:
        time.sleep(0.1)

    left = set(real_server.leftovers()) - before
    # Prepared network places and the one firewall table stay while the server runs.
    left = {item for item in left if not item.startswith(("link", "nft"))}
    assert left == set()


def test_the_same_idempotency_key_gives_the_same_sandbox(server):
    body = {"templateID": "base", "timeout": 60}
    headers = {"Idempotency-Key": f"test-{time.time_ns()}"}

    first = server.request("POST", "/v2/sandboxes", body, **headers)
    second = server.request("POST", "/v2/sandboxes", body, **headers)
    other = server.request("POST", "/v2/sandboxes", body | {"timeout": 61}, **headers)

    assert (first[0], second[0]) == (201, 201)
    assert first[1]["sandboxID"] == second[1]["sandboxID"]
    assert first[1]["envdAccessToken"] == second[1]["envdAccessToken"]
    assert other[0] == other[1]["code"] == 422
    assert Sandbox.kill(first[1]["sandboxID"])


def test_a_client_that_goes_away_in_the_middle_of_create_leaves_no_sandbox(server):
    marker = f"gone-{time.time_ns()}"
    body = {"templateID": "base", "timeout": 60, "metadata": {"marker": marker}}
    for delay in (0.001, 0.005, 0.02):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(
                server.api_url + "/v2/sandboxes",
                headers={"X-API-Key": server.key},
                json=body,
                timeout=httpx.Timeout(5, read=delay),
            )

    until = time.monotonic() + 10
    listed = None
    while listed != [] and time.monotonic() < until:
        time.sleep(0.2)
        _, listed, _ = server.request("GET", f"/v2/sandboxes?metadata=marker%3D{marker}")
    assert listed == []


def test_a_sandbox_that_ends_by_itself_is_gone_for_clients_too():
    sandbox = Sandbox.create(timeout=120)
    init = next(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cgroup")
        if f"/opene2b/{sandbox.sandbox_id}" in path.read_text()
        and b".init" in (path.parent / "cmdline").read_bytes()
    )

    os.kill(init, signal.SIGKILL)
    until = time.monotonic() + 10
    while sandbox.is_running() and time.monotonic() < until:
        time.sleep(0.05)

    assert not sandbox.is_running()
    assert sandbox.kill() is False
