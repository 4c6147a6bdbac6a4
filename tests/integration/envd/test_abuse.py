"""What clients do wrong, or hostile ones on purpose."""

import json
import socket
import time

import httpx
import pytest
from connect_client import TOKEN, envelopes


def upload(envd, path: str, size: int, **headers: str) -> bytes:
    """All of an upload is sent, whatever is said meanwhile; returns what was answered."""
    lines = [
        f"POST /files?path={path} HTTP/1.1",
        "Host: x",
        f"Content-Length: {size}",
        "Content-Type: application/octet-stream",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    with socket.create_connection(("127.0.0.1", envd.port), timeout=20) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        block = bytes(1 << 20)
        for _ in range(size >> 20):
            connection.sendall(block)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [("/tmp", TOKEN, 400), ("/tmp/x", "wrong", 401), ("/tmp/x&username=nobodyx", TOKEN, 401)],
    ids=["a directory", "wrong token", "unknown user"],
)
def test_a_refused_upload_is_told_why_before_its_end(envd, path, token, status):
    answer = upload(envd, path, 60 << 20, **{"X-Access-Token": token})

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == status


@pytest.mark.parametrize("path", ["/files?path=/x&username=%ff", "/files?path=/%ff%00", "/%ff"])
def test_bytes_that_are_no_text_are_answered(envd, path):
    answer = envd.http.get(path)

    assert answer.status_code in {400, 401, 404}
    assert answer.json()["code"] == answer.status_code


def test_a_user_whose_name_is_no_text_is_unknown_to_calls(envd):
    answer = envd.rpc("filesystem.Filesystem/Stat?username=%ff", {"path": "/"})

    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthenticated"


def test_too_many_query_parameters_are_refused(envd):
    answer = envd.http.get("/files?" + "&".join(f"a{number}=1" for number in range(150)))

    assert answer.status_code == 400


def test_listings_that_nobody_waits_for_hold_up_nobody(envd, tmp_path):
    for number in range(30_000):
        (tmp_path / f"{number}").touch()
    for _ in range(8):
        with pytest.raises(httpx.ReadTimeout), envd.client() as client:
            client.post(
                "/filesystem.Filesystem/ListDir",
                json={"path": "/", "depth": 100},
                timeout=httpx.Timeout(20, read=0.05),
            )
    begun = time.monotonic()
    answer = envd.rpc("filesystem.Filesystem/Stat", {"path": "/"})

    assert answer.status_code == 200
    # It waited for minutes before; a bound that no noisy machine reaches.
    assert time.monotonic() - begun < 10


def test_a_slow_reader_is_told_that_its_time_is_over(envd):
    endless = {"cmd": "/bin/sh", "args": ["-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyy; done"]}
    with envd.open("process.Process/Start", {"process": endless, "stdin": False}) as started:
        pid = next(envelopes(started.iter_raw()))["event"]["start"]["pid"]
        selected = {"process": {"pid": pid}}
        with envd.open("process.Process/Connect", selected, **{"Connect-Timeout-Ms": "300"}) as it:
            time.sleep(1)
            last = list(envelopes(it.iter_raw()))[-1]
        envd.rpc("process.Process/SendSignal", {**selected, "signal": "SIGNAL_SIGKILL"})

    assert last["END"]["error"]["code"] == "deadline_exceeded"


def test_a_large_listing_comes_in_pieces_and_whole(envd, tmp_path):
    for number in range(2500):
        (tmp_path / f"{number:04}").touch()
    answer = envd.rpc("filesystem.Filesystem/ListDir", {"path": str(tmp_path)})

    assert [e["name"] for e in answer.json()["entries"]] == [f"{n:04}" for n in range(2500)]


def test_metrics_are_of_the_processes_here(envd):
    envd.http.get("/metrics")
    envd.run("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
    seen = envd.http.get("/metrics").json()

    assert 0 < seen["cpu_used_pct"] <= 100
    assert 0 < seen["mem_used"] <= seen["mem_total"]


def test_a_slow_reader_slows_nobody_else(envd):
    endless = {"cmd": "/bin/sh", "args": ["-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyy; done"]}
    with envd.open("process.Process/Start", {"process": endless, "stdin": False}) as started:
        pid = next(envelopes(started.iter_raw()))["event"]["start"]["pid"]
        time.sleep(0.5)  # its buffers are full by now
        others = [envd.run("echo there")[-2]["event"]["end"]["status"] for _ in range(20)]
        selected = {"process": {"pid": pid}}
        killed = envd.rpc("process.Process/SendSignal", {**selected, "signal": "SIGNAL_SIGKILL"})

    assert others == ["exit status 0"] * 20
    assert killed.status_code == 200
