"""process.Process of a real envd, by its messages."""

import base64
import json
import os
import time

import httpx
import pytest
from connect_client import TOKEN, envelopes, frame


def text(events: list[dict], kind: str = "stdout") -> str:
    pieces = [event["event"].get("data", {}).get(kind, "") for event in events if "event" in event]
    return b"".join(base64.b64decode(piece) for piece in pieces).decode()


def end(events: list[dict]) -> dict:
    return next(event["event"]["end"] for event in events if "end" in event.get("event", {}))


def test_a_program_s_output_and_end_come_after_its_start(envd):
    events = envd.run("echo out; echo err >&2; exit 7")

    assert events[0]["event"]["start"]["pid"] > 0
    assert (text(events), text(events, "stderr")) == ("out\n", "err\n")
    assert end(events) == {
        "exitCode": 7,
        "exited": True,
        "status": "exit status 7",
        "error": "exit status 7",
    }
    assert events[-1] == {"END": {}}


def test_a_program_ended_by_a_signal_says_which(envd):
    assert end(envd.run("kill -9 $$")) == {
        "exitCode": -1,
        "status": "signal: killed",
        "error": "signal: killed",
    }
    assert end(envd.run("kill -15 $$"))["status"] == "signal: terminated"


def test_output_of_one_left_behind_does_not_hold_up_the_end(envd):
    started = time.monotonic()
    events = envd.run("sleep 30 & echo done")

    assert text(events) == "done\n"
    assert time.monotonic() - started < 20


def test_one_left_behind_may_go_on_writing(envd, tmp_path):
    envd.run(f"(sleep 0.3; echo more; echo $? > {tmp_path}/status) & true")

    until = time.monotonic() + 10
    while not (tmp_path / "status").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / "status").read_text() == "0\n"


def test_the_timeout_of_start_kills_the_process_and_its_children(envd, tmp_path):
    events = envd.run(f"sleep 50 & echo $! > {tmp_path}/pid; wait", **{"Connect-Timeout-Ms": "300"})

    assert events[-1]["END"]["error"]["code"] == "deadline_exceeded"
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while os.path.exists(f"/proc/{child}/fd") and time.monotonic() < until:
        with open(f"/proc/{child}/stat") as stat:
            if stat.read().split()[2] == "Z":
                break
        time.sleep(0.02)
    else:
        assert not os.path.exists(f"/proc/{child}/fd")


def test_a_client_that_leaves_leaves_the_process_running(envd):
    process = {"cmd": "/bin/sh", "args": ["-c", "echo begun; sleep 0.5; echo later; sleep 30"]}
    with envd.open("process.Process/Start", {"process": process}) as response:
        pid = next(envelopes_of(response))["event"]["start"]["pid"]

    listed = envd.rpc("process.Process/List", {}).json()["processes"]
    with envd.open("process.Process/Connect", {"process": {"pid": pid}}) as response:
        events = envelopes_of(response)
        first, second = next(events), next(events)

    assert [process["pid"] for process in listed] == [pid]
    assert first == {"event": {"start": {"pid": pid}}}
    assert base64.b64decode(second["event"]["data"]["stdout"]) == b"later\n"
    assert (
        envd.rpc(
            "process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}
        ).json()
        == {}
    )


def envelopes_of(response: httpx.Response):
    response.read_raw = response.iter_raw()
    buffer = b""
    for chunk in response.read_raw:
        buffer += chunk
        while len(buffer) >= 5 and len(buffer) >= 5 + int.from_bytes(buffer[1:5], "big"):
            size = 5 + int.from_bytes(buffer[1:5], "big")
            yield from envelopes([buffer[:size]])
            buffer = buffer[size:]


def test_an_ended_process_is_remembered_for_a_while(envd):
    pid = envd.run("exit 4")[0]["event"]["start"]["pid"]

    events = envd.stream("process.Process/Connect", {"process": {"pid": pid}})

    assert end(events)["exitCode"] == 4
    assert envd.rpc("process.Process/List", {}).json() == {}


def test_two_listeners_get_the_same_output(envd):
    process = {"cmd": "/bin/sh", "args": ["-c", "read x; echo got $x"]}
    message = {"process": process, "tag": "shared", "stdin": True}
    with (
        envd.open("process.Process/Start", message) as one,
        envd.open("process.Process/Connect", {"process": {"tag": "shared"}}) as two,
    ):
        envd.rpc(
            "process.Process/SendInput",
            {"process": {"tag": "shared"}, "input": {"stdin": base64.b64encode(b"it\n").decode()}},
        )
        outputs = [text(list(envelopes_of(stream))) for stream in (one, two)]

    assert outputs == ["got it\n"] * 2


def test_input_is_streamed_in_one_call(envd):
    process = {"cmd": "/bin/cat"}
    encode = lambda data: base64.b64encode(data).decode()  # noqa: E731
    with envd.open("process.Process/Start", {"process": process, "tag": "cat"}) as started:
        events = envelopes_of(started)
        next(events)
        answer = envd.http.post(
            "/process.Process/StreamInput",
            content=iter(
                [
                    frame({"start": {"process": {"tag": "cat"}}}),
                    frame({"data": {"input": {"stdin": encode(b"one ")}}})[:7],
                    frame({"data": {"input": {"stdin": encode(b"one ")}}})[7:],
                    frame({"keepalive": {}}),
                    frame({"data": {"input": {"stdin": encode(b"two")}}}),
                ]
            ),
            headers={"Content-Type": "application/connect+json"},
        )
        envd.rpc("process.Process/CloseStdin", {"process": {"tag": "cat"}})
        output = text(list(events))

    assert list(envelopes([answer.content])) == [{}, {"END": {}}]
    assert output == "one two"


def test_a_terminal_is_sized_resized_and_ends_with_its_shell(envd):
    message = {
        "process": {"cmd": "/bin/sh"},
        "pty": {"size": {"rows": 20, "cols": 70}},
        "tag": "pty",
    }
    with envd.open("process.Process/Start", message) as started:
        events = envelopes_of(started)
        next(events)
        for size, line in (
            ({"rows": 20, "cols": 70}, b"stty size\n"),
            (
                {"rows": 30, "cols": 90},
                b"stty size; tty; exit\n",
            ),
        ):
            envd.rpc("process.Process/Update", {"process": {"tag": "pty"}, "pty": {"size": size}})
            envd.rpc(
                "process.Process/SendInput",
                {"process": {"tag": "pty"}, "input": {"pty": base64.b64encode(line).decode()}},
            )
            time.sleep(0.2)
        output = text(list(events), "pty")

    assert "20 70" in output
    assert "30 90" in output
    assert "/dev/pts/" in output


def test_silence_is_broken_by_keepalives(envd):
    events = envd.run("sleep 1.5", **{"Keepalive-Ping-Interval": "1"})

    assert {"event": {"keepalive": {}}} in events


def test_a_slow_listener_slows_the_program_and_bounds_memory(envd):
    process = {"cmd": "/bin/sh", "args": ["-c", "exec yes"]}
    with envd.open("process.Process/Start", {"process": process, "tag": "endless"}) as started:
        next(envelopes_of(started))
        time.sleep(1)
        with open(f"/proc/{envd.pid}/status") as status:
            resident_kib = int(status.read().split("VmRSS:")[1].split()[0])
        other = envd.run("echo not held up")
        envd.rpc("process.Process/SendSignal", {"process": {"tag": "endless"}, "signal": 9})

    assert text(other) == "not held up\n"
    assert resident_kib < 60 << 10


def test_a_hundred_programs_run_at_once(envd):
    message = {"process": {"cmd": "/bin/sh", "args": ["-c", "read x; echo $x"]}}
    with httpx.Client(base_url=envd.http.base_url, limits=httpx.Limits(max_connections=None)):
        pids = []
        for _ in range(100):
            with envd.open("process.Process/Start", message) as started:
                pids.append(next(envelopes_of(started))["event"]["start"]["pid"])
    for pid in pids:
        envd.rpc(
            "process.Process/SendInput",
            {"process": {"pid": pid}, "input": {"stdin": base64.b64encode(b"hi\n").decode()}},
        )
    ends = [envd.stream("process.Process/Connect", {"process": {"pid": pid}}) for pid in pids]

    assert [end(events).get("exitCode", 0) for events in ends] == [0] * 100


def test_environment_is_merged_and_directories_are_understood(envd, tmp_path):
    process = {
        "cmd": "/bin/sh",
        "args": ["-c", "echo $FROM $OWN $USER; pwd"],
        "envs": {"OWN": "request"},
        "cwd": str(tmp_path),
    }
    events = envd.stream("process.Process/Start", {"process": process})

    assert text(events).splitlines() == [
        f"sandbox request {os.environ.get('USER', 'root')}",
        str(tmp_path),
    ]


def test_no_descriptor_of_envd_reaches_a_program(envd):
    assert text(envd.run("ls /proc/self/fd")).split() == ["0", "1", "2", "3"]


BASIC_NOBODY = "Basic " + base64.b64encode(b"nosuchuser:").decode()


@pytest.mark.parametrize(
    ("message", "headers", "code"),
    [
        ({}, {}, "invalid_argument"),
        ({"process": {}}, {}, "invalid_argument"),
        ({"process": {"cmd": "/no/such/program"}}, {}, "invalid_argument"),
        ({"process": {"cmd": "/etc/passwd"}}, {}, "permission_denied"),
        ({"process": {"cmd": "ls", "cwd": "/no/such/dir"}}, {}, "invalid_argument"),
        ({"process": {"cmd": "a\0b"}}, {}, "invalid_argument"),
        ({"process": {"cmd": "ls", "envs": {"A=B": "c"}}}, {}, "invalid_argument"),
        ({"process": {"cmd": "ls", "args": "x"}}, {}, "invalid_argument"),
        ({"process": {"cmd": "ls"}, "pty": {"size": {"rows": 70000}}}, {}, "invalid_argument"),
        ({"process": {"cmd": "ls"}}, {"Authorization": BASIC_NOBODY}, "unauthenticated"),
        ({"process": {"cmd": "ls"}}, {"Connect-Timeout-Ms": "soon"}, "invalid_argument"),
        ({"process": {"cmd": "ls"}}, {"Connect-Content-Encoding": "gzip"}, "unimplemented"),
    ],
)
def test_a_start_that_cannot_be_says_why_in_its_last_envelope(envd, message, headers, code):
    events = envd.stream("process.Process/Start", message, **headers)

    assert [list(event) for event in events] == [["END"]]
    assert events[0]["END"]["error"]["code"] == code


@pytest.mark.parametrize(
    ("method", "message", "status", "code"),
    [
        ("SendSignal", {"process": {"pid": 999999}, "signal": 9}, 404, "not_found"),
        ("SendSignal", {"process": {"tag": "none"}, "signal": 9}, 404, "not_found"),
        ("SendSignal", {"signal": 9}, 400, "invalid_argument"),
        ("SendSignal", {"process": {}, "signal": 9}, 400, "invalid_argument"),
        ("SendSignal", {"process": {"pid": 1}, "signal": "SIGNAL_NEW"}, 501, "unimplemented"),
        ("SendInput", {"process": {"pid": 999999}, "input": {"stdin": ""}}, 404, "not_found"),
        ("Update", {"process": {"pid": 999999}}, 404, "not_found"),
        ("CloseStdin", {"process": {"pid": 999999}}, 404, "not_found"),
        ("NoSuchMethod", {}, 404, "unimplemented"),
    ],
)
def test_unary_errors_have_the_status_of_their_code(envd, method, message, status, code):
    answer = envd.rpc(f"process.Process/{method}", message)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_wrong_content_types_and_methods_are_refused(envd):
    unary = envd.http.post(
        "/process.Process/List", content=b"{}", headers={"Content-Type": "text/x"}
    )
    streamed = envd.http.post(
        "/process.Process/Start", content=b"", headers={"Content-Type": "application/proto"}
    )
    fetched = envd.http.get("/process.Process/List")

    assert (unary.status_code, streamed.status_code, fetched.status_code) == (415, 415, 405)


def test_the_stream_s_content_type_has_no_parameters(envd):
    with envd.open("process.Process/Start", {"process": {"cmd": "/bin/true"}}) as answer:
        assert answer.headers["content-type"] == "application/connect+json"
        assert answer.status_code == 200


@pytest.mark.parametrize("token", ["", "x", TOKEN + "x", TOKEN[:-1], "é"])
def test_a_wrong_token_is_refused_everywhere_but_at_health(envd, token):
    headers = {"X-Access-Token": token.encode("latin-1")}
    paths = ["/envs", "/metrics", "/files?path=/etc/passwd", "/nowhere"]

    answers = [envd.http.get(path, headers=headers) for path in paths]
    answers.append(envd.http.post("/process.Process/List", json={}, headers=headers))
    answers.append(envd.http.post("/init", json={"accessToken": "mine"}, headers=headers))

    assert [answer.status_code for answer in answers] == [401] * 6
    assert all(answer.json()["code"] == 401 for answer in answers)
    assert envd.http.get("/health", headers=headers).status_code == 204


def test_init_changes_what_later_commands_get(envd):
    answer = envd.http.post("/init", json={"envVars": {"FROM": "init"}})

    assert answer.status_code == 204
    assert answer.headers["x-envd-version"] == "0.6.13"
    assert text(envd.run("echo $FROM")) == "init\n"
    assert envd.http.get("/envs").json()["FROM"] == "init"


def test_input_to_a_program_that_reads_no_more_is_an_error_and_envd_lives_on(envd):
    process = {"cmd": "/bin/sh", "args": ["-c", "exec 0<&-; echo closed; sleep 20"]}
    with envd.open("process.Process/Start", {"process": process, "stdin": True}) as response:
        events = envelopes(response.iter_raw())
        pid = next(events)["event"]["start"]["pid"]
        assert text([next(events)]) == "closed\n"
        answer = envd.rpc(
            "process.Process/SendInput",
            {
                "process": {"pid": pid},
                "input": {"stdin": base64.b64encode(b"x" * 100_000).decode()},
            },
        )
        envd.rpc(
            "process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}
        )

    assert answer.json()["code"] == "failed_precondition"
    assert envd.http.get("/health").status_code == 204


def test_programs_get_the_signals_that_envd_ignores(envd):
    status = text(envd.run("grep SigIgn /proc/self/status"))

    # SIGPIPE is 13 and SIGXFSZ 25: bits 12 and 24.
    assert int(status.split()[1], 16) & (1 << 12 | 1 << 24) == 0


def test_a_plain_json_start_is_answered_by_lines(envd):
    process = {"cmd": "/bin/sh", "args": ["-c", "echo out; exit 3"]}
    with envd.http.stream("POST", "/process.Process/Start", json={"process": process}) as response:
        lines = [json.loads(line) for line in response.iter_lines()]

    assert response.headers["content-type"] == "application/x-ndjson"
    assert lines[0]["event"]["start"]["pid"] > 0
    assert (text(lines), end(lines)["exitCode"]) == ("out\n", 3)


def test_a_plain_json_start_that_cannot_be_has_the_status_of_its_error(envd):
    refused = envd.rpc("process.Process/Start", {"process": {"cmd": "/nowhere"}})

    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")


def test_a_plain_json_start_that_is_cut_off_says_so_in_its_last_line(envd):
    process = {"cmd": "/bin/sleep", "args": ["30"]}
    response = envd.rpc(
        "process.Process/Start", {"process": process}, **{"Connect-Timeout-Ms": "200"}
    )

    assert json.loads(response.text.splitlines()[-1])["error"]["code"] == "deadline_exceeded"


def test_protobuf_clients_are_understood(envd):
    # StatRequest{path: "/etc"}
    entry = envd.http.post(
        "/filesystem.Filesystem/Stat",
        content=b"\x0a\x04/etc",
        headers={"Content-Type": "application/proto"},
    )
    # StartRequest{process: {cmd: "/bin/echo", args: ["hi"]}}
    config = b"\x0a\x09/bin/echo\x12\x02hi"
    message = b"\x0a" + bytes([len(config)]) + config
    started = envd.http.post(
        "/process.Process/Start",
        content=b"\0" + len(message).to_bytes(4, "big") + message,
        headers={"Content-Type": "application/connect+proto"},
    )
    missing = envd.http.post(
        "/filesystem.Filesystem/Stat",
        content=b"\x0a\x08/nowhere",
        headers={"Content-Type": "application/proto"},
    )

    assert (entry.status_code, entry.headers["content-type"]) == (200, "application/proto")
    assert b"\x0a\x03etc" in entry.content
    assert started.headers["content-type"] == "application/connect+proto"
    assert b"\x0a\x03hi\n" in started.content
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
