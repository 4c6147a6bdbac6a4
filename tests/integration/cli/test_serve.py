import os
import signal
import stat
from pathlib import Path

import pytest

from opene2b.linux import processes

pytestmark = [pytest.mark.root, pytest.mark.slow]


def status(pid: int, name: str) -> list[str]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return line.split()[1:]
    raise AssertionError(name)


def alive(pids) -> list[int]:
    return [pid for pid in pids if processes.start_time(pid) is not None]


def test_a_ready_server_prints_what_clients_need(serve):
    serve.start()
    serve.ready()
    key = (serve.home / "api-key").read_text().strip()

    assert [line for line in serve.said().splitlines() if line.startswith("export ")] == [
        f"export E2B_API_URL=http://localhost:{serve.env['E2B_API_PORT']}",
        f"export E2B_SANDBOX_URL=http://localhost:{serve.env['OPENE2B_PROXY_PORT']}",
        f"export E2B_API_KEY={key}",
    ]


def test_api_and_proxy_run_without_any_right(serve):
    serve.start()
    serve.ready()
    children = serve.children()

    seen = {
        name: (status(children[name], "Uid"), status(children[name], "Gid"))
        for name in ("api", "proxy", "node")
    }

    assert seen == {
        "api": (["64230"] * 4, ["64230"] * 4),
        "proxy": (["64231"] * 4, ["64231"] * 4),
        "node": (["0"] * 4, ["0"] * 4),
    }
    for name in ("api", "proxy"):
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status(children[name], capabilities)[0], 16) == 0
        assert status(children[name], "NoNewPrivs") == ["1"]
        assert status(children[name], "Groups") == []


def test_only_the_control_plane_is_told_the_key(serve):
    serve.start(OPENE2B_API_KEY="e2b_" + "c" * 40)
    serve.ready()
    holders = [
        name
        for name, pid in serve.children().items()
        if b"cccc" in Path(f"/proc/{pid}/environ").read_bytes()
    ]

    assert holders == ["api"]


def test_the_directories_are_open_to_those_who_need_them_only(serve):
    serve.start()
    serve.ready()
    modes = {
        path.name: (oct(stat.S_IMODE(path.stat().st_mode)), path.stat().st_uid)
        for path in (serve.home, *serve.home.iterdir())
    }

    assert modes == {
        "home": ("0o711", 0),
        "run": ("0o711", 0),
        "control": ("0o700", 64230),
        "node": ("0o700", 0),
        "images": ("0o700", 0),
        "layers": ("0o700", 0),
        "logs": ("0o700", 0),
        "api-key": ("0o600", 0),
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_server_in_order(serve, number):
    process = serve.start()
    serve.ready()
    children = serve.children()
    process.send_signal(number)
    code = process.wait(20)

    assert code == 0
    assert alive(children.values()) == []
    assert "no sandbox is left" in serve.said()
    assert (serve.home / "logs/api.log").read_text() == "api starts\napi stops\n"


def test_a_stopped_server_says_which_sandboxes_stay(serve):
    process = serve.start()
    serve.ready()
    (serve.home / "node/sandboxes/iabc").mkdir(parents=True)
    process.terminate()
    process.wait(20)

    assert "1 sandbox keeps running for its next start; `opene2b down` ends them" in serve.said()


def test_a_second_signal_does_not_wait_for_a_deaf_child(serve):
    process = serve.start(STAND_IN_DEAF="node")
    serve.ready()
    children = serve.children()
    process.terminate()
    serve.until(lambda: "once more to hurry" in serve.said())
    process.terminate()
    code = process.wait(5)

    assert code == 0
    assert alive(children.values()) == []


@pytest.mark.parametrize("name", ["api", "proxy", "node"])
def test_a_part_that_dies_is_started_again(serve, name):
    serve.start()
    serve.ready()
    before = serve.children()
    os.kill(before[name], signal.SIGKILL)
    serve.until(lambda: serve.children()[name] != before[name])
    after = serve.children()

    assert {other for other in before if before[other] == after[other]} == set(before) - {name}
    assert f"{name} ended (signal 9) and is started again" in serve.said()


def test_a_part_that_cannot_start_ends_the_server_with_its_last_words(serve):
    process = serve.start(STAND_IN_BROKEN="proxy")
    code = process.wait(30)

    assert code == 1
    assert "proxy keeps ending (exit code 1)" in serve.said()
    assert "proxy cannot: out of order" in serve.said()


def test_a_second_server_on_the_same_home_is_refused(serve):
    first = serve.start()
    serve.ready()
    second = serve.start()

    assert second.wait(20) == 1
    assert f"a server already runs with OPENE2B_HOME={serve.home}" in serve.said()
    assert f"process {first.pid}" in serve.said()


def test_a_taken_port_is_named_with_its_setting(serve):
    serve.start()
    serve.ready()
    env = {"OPENE2B_HOME": str(serve.home) + "-other"}
    second = serve.start(**env)

    assert second.wait(30) == 1
    assert "set E2B_API_PORT to another port" in serve.said()


def test_a_killed_server_leaves_no_part_and_the_next_one_starts(serve):
    first = serve.start()
    serve.ready()
    children = serve.children()
    first.kill()
    first.wait()
    serve.until(lambda: alive(children.values()) == [])
    second = serve.start()
    serve.ready(times=2)

    assert second.poll() is None


def test_a_hanging_part_of_a_killed_server_does_not_block_the_next_one(serve):
    first = serve.start(STAND_IN_DEAF="api")
    serve.ready()
    left = serve.children()["api"]
    first.kill()
    first.wait()
    serve.start()
    serve.ready(times=2)

    assert alive([left]) == []
