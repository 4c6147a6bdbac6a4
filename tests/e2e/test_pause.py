"""Pause and resume through the stock SDK: processes, terminals and services stand still and go on."""

import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import real_server
from e2b import (
    NotFoundException,
    PtySize,
    Sandbox,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
)
from e2b.exceptions import SandboxException, TimeoutException


@pytest.fixture
def sandbox(server):
    made = Sandbox.create(timeout=120, metadata={"kept": "yes"}, envs={"E": "kept"})
    yield made
    made.kill()


def cpu_ticks(sandbox_id: str) -> int:
    total = 0
    for group in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if f"/opene2b/{sandbox_id}" in group.read_text():
                fields = (group.parent / "stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return total


def test_processes_files_and_memory_go_on(sandbox):
    sandbox.files.write("f", "before")
    counter = sandbox.commands.run(
        "i=0; while :; do i=$((i+1)); echo $i > /tmp/m; mv /tmp/m /tmp/n; sleep 0.02; done",
        background=True,
    )
    time.sleep(0.2)
    sandbox.pause()
    info = Sandbox.get_info(sandbox.sandbox_id)
    running = sandbox.is_running()
    before = cpu_ticks(sandbox.sandbox_id)
    time.sleep(1)
    used = cpu_ticks(sandbox.sandbox_id) - before
    again = Sandbox.connect(sandbox.sandbox_id, timeout=120)
    first = int(again.files.read("/tmp/n"))
    time.sleep(0.3)
    second = int(again.files.read("/tmp/n"))
    pids = [process.pid for process in again.commands.list()]
    result = again.commands.run("cat f; echo $E")

    assert info.state is SandboxState.PAUSED
    assert not running
    assert used == 0
    assert 0 < first < 40  # it did not count while it stood still
    assert second > first
    assert counter.pid in pids
    assert result.stdout == "before" + "kept\n"
    assert again.get_info().metadata == {"kept": "yes"}


def test_a_terminal_goes_on_after_a_client_comes_back(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(terminal.pid, b"X=remembered\n")
    time.sleep(0.3)
    sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id, timeout=120)
    seen = bytearray()
    back = sandbox.pty.connect(terminal.pid)
    sandbox.pty.send_stdin(terminal.pid, b"echo $X; exit\n")
    back.wait(on_pty=seen.extend)

    assert b"\nremembered\r\n" in seen or b"remembered" in bytes(seen).split(b"exit")[-1]


def test_what_waits_for_a_paused_sandbox_is_told_at_once(sandbox):
    handle = sandbox.commands.run("sleep 100", background=True)
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(handle.wait)
        time.sleep(0.3)
        sandbox.pause()
        with pytest.raises((SandboxException, TimeoutException)):
            waiting.result(timeout=20)
    with pytest.raises((SandboxException, TimeoutException)):
        sandbox.commands.run("true")

    assert time.monotonic() - begun < 20


def test_pausing_twice_is_told_and_a_paused_sandbox_is_listed_and_killed(sandbox):
    first = sandbox.pause()
    second = sandbox.pause()
    query = SandboxQuery(state=[SandboxState.PAUSED])
    listed = [info.sandbox_id for info in Sandbox.list(query=query).next_items()]
    killed = [sandbox.kill(), sandbox.kill()]

    assert (first, second) == (True, False)
    assert sandbox.sandbox_id in listed
    assert killed == [True, False]
    with pytest.raises((NotFoundException, SandboxNotFoundException)):
        Sandbox.connect(sandbox.sandbox_id)


def test_a_service_has_its_address_again(sandbox):
    sandbox.commands.run("python3 -m http.server 8000 --bind 127.0.0.1", background=True)
    url = f"{real_server.Server(env={}).proxy_url}/"
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}

    def status() -> int:
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code

    until = time.monotonic() + 10
    while (before := status()) != 200 and time.monotonic() < until:
        time.sleep(0.05)
    sandbox.pause()
    during = status()
    Sandbox.connect(sandbox.sandbox_id, timeout=60)
    after = status()

    assert (before, during, after) == (200, 502, 200)


def test_a_sandbox_is_paused_at_its_time_when_it_asked_for_that(server):
    made = Sandbox.create(timeout=1, lifecycle={"on_timeout": "pause"})
    until = time.monotonic() + 20
    while (state := made.get_info().state) is not SandboxState.PAUSED:
        assert time.monotonic() < until
        time.sleep(0.1)
    made.connect(timeout=60)
    output = made.commands.run("echo back").stdout
    made.kill()

    assert state is SandboxState.PAUSED
    assert output == "back\n"


def test_traffic_resumes_a_paused_sandbox_once_for_all(server):
    made = Sandbox.create(timeout=120, lifecycle={"on_timeout": "pause", "auto_resume": True})
    # With a queue for all who come at once: its own holds five.
    made.commands.run(
        "python3 -c 'import http.server as h; h.ThreadingHTTPServer.request_queue_size = 1000;"
        " h.ThreadingHTTPServer((str(), 8000), h.SimpleHTTPRequestHandler).serve_forever()'",
        background=True,
        timeout=0,
    )
    address = f"{server.proxy_url}/"
    headers = {"E2b-Sandbox-Id": made.sandbox_id, "E2b-Sandbox-Port": "8000"}

    def fetch(_: int) -> int:
        request = urllib.request.Request(address, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code

    until = time.monotonic() + 10
    while fetch(0) != 200 and time.monotonic() < until:
        time.sleep(0.05)
    made.pause()
    log = real_server.HOME / "logs/api.log"
    resumes = log.read_text().count("sandbox_resumed")
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(fetch, range(300)))
    resumes = log.read_text().count("sandbox_resumed") - resumes
    info = made.get_info()
    made.pause()
    output = made.commands.run("echo awake").stdout
    made.kill()

    assert set(answers) == {200}
    assert resumes == 1
    assert info.state is SandboxState.RUNNING
    assert output == "awake\n"


def test_a_wrong_token_resumes_nothing(server):
    made = Sandbox.create(
        timeout=120,
        lifecycle={"on_timeout": "pause", "auto_resume": True},
        network={"allow_public_traffic": False},
    )
    made.pause()
    request = urllib.request.Request(
        f"{server.proxy_url}/",
        headers={"E2b-Sandbox-Id": made.sandbox_id, "E2b-Sandbox-Port": "8000"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    refused.value.close()
    state = made.get_info().state
    made.kill()

    assert refused.value.code == 403
    assert state is SandboxState.PAUSED


def test_without_its_memory_a_sandbox_starts_again_from_its_disk(sandbox):
    sandbox.files.write("mine", "kept")
    sandbox.commands.run("sudo install -o root -m 600 /dev/null /opt/roots && echo x > /dev/shm/m")
    sandbox.commands.run("sleep 1000", background=True, timeout=0)
    sandbox.pause(mode="filesystem")
    info = sandbox.get_info()
    again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    seen = again.commands.run(
        "cat mine; stat -c ' %U %a' /opt/roots; echo $E; pgrep -x sleep || echo none;"
        " ls /dev/shm; getent hosts e2b.local | cut -d' ' -f1; hostname -I"
    ).stdout.split()
    token_works = again.files.exists("mine")
    again.pause(mode="filesystem")
    third = Sandbox.connect(sandbox.sandbox_id, timeout=60)

    assert info.state is SandboxState.PAUSED
    assert seen[:5] == ["kept", "root", "600", "kept", "none"]
    assert seen[5] == seen[6]  # its own address, whatever it is now
    assert token_works
    assert third.files.read("mine") == "kept"


def test_what_a_guest_made_of_its_etc_leads_nowhere_outside(sandbox, tmp_path):
    target = tmp_path / "etc"
    target.mkdir()
    (target / "hosts").write_text("10.0.0.1 e2b.local\n")
    sandbox.commands.run(f"mv /etc /etc2 && ln -s {target} /etc", user="root")
    sandbox.pause(mode="filesystem")
    resumed = Sandbox.connect(sandbox.sandbox_id, timeout=60)

    assert (target / "hosts").read_text() == "10.0.0.1 e2b.local\n"
    assert resumed.sandbox_id == sandbox.sandbox_id
