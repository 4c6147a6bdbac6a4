"""The rules of the Connect protocol, each with a test, against a real envd; and the errors that the contract fixes.

Source: Connect protocol specification; E2B envd contract. The protocol's own conformance runner is a Go program that
cannot be had where these tests run.
"""

import base64
import json
import struct
import time

import pytest
from connect_client import envelopes, frame

UNARY = "/filesystem.Filesystem/Stat"
STREAM = "/process.Process/Start"
TRUE = {"process": {"cmd": "/bin/true"}, "stdin": False}
JSON = {"Content-Type": "application/json"}
CONNECT_JSON = {"Content-Type": "application/connect+json"}


def post(envd, path, body: bytes, **headers: str):
    return envd.http.post(path, content=body, headers=headers)


def end_of(response) -> dict:
    """The last envelope of a stream."""
    assert response.status_code == 200
    return list(envelopes([response.content]))[-1]["END"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "Application/JSON"}, 200),
        ({"Content-Type": "application/json", "Connect-Protocol-Version": "1"}, 200),
        ({"Content-Type": "application/json", "Connect-Protocol-Version": "2"}, 400),
        ({"Content-Type": "application/json", "Content-Encoding": "identity"}, 200),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 501),
        ({"Content-Type": "application/json", "Accept-Encoding": "gzip, br"}, 200),
        ({"Content-Type": "application/json", "Connect-Timeout-Ms": "1000"}, 200),
        ({"Content-Type": "application/json", "Connect-Timeout-Ms": "12345678901"}, 400),
        ({"Content-Type": "application/json", "Connect-Timeout-Ms": "-1"}, 400),
        ({"Content-Type": "application/json", "Connect-Timeout-Ms": "1.5"}, 400),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/connect+json"}, 415),
        ({"Content-Type": "application/grpc"}, 415),
    ],
    ids=repr,
)
def test_headers_of_unary_calls(envd, headers, status):
    answer = post(envd, UNARY, b'{"path":"/"}', **headers)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert "content-encoding" not in answer.headers
    if status not in {200, 415}:
        assert set(answer.json()) >= {"code", "message"}
    if status == 415:
        assert answer.headers["accept-post"] == "application/json"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),
        ({"Connect-Protocol-Version": "1"}, None),
        ({"Connect-Protocol-Version": "7"}, "invalid_argument"),
        ({"Connect-Content-Encoding": "identity"}, None),
        ({"Connect-Accept-Encoding": "gzip"}, None),
        ({"Connect-Content-Encoding": "gzip"}, "unimplemented"),
        ({"Connect-Timeout-Ms": "x"}, "invalid_argument"),
    ],
    ids=repr,
)
def test_headers_of_streams(envd, headers, code):
    answer = post(envd, STREAM, frame(TRUE), **CONNECT_JSON, **headers)

    assert answer.headers["content-type"] == "application/connect+json"
    assert "connect-content-encoding" not in answer.headers
    assert end_of(answer).get("error", {}).get("code") == code


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_calls_are_made_with_post(envd, method):
    # GET is for methods without side effects; the contract marks none as such.
    answer = envd.http.request(method, UNARY)

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


def test_an_unknown_method_is_unimplemented(envd):
    answer = post(envd, "/process.Process/Nothing", b"{}", **JSON)

    assert answer.status_code == 404
    assert answer.json()["code"] == "unimplemented"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200),  # an empty message is the message with nothing set
        (b"{}", 200),
        (b'{"path":null}', 200),
        (b'{"path":"/","unknown":{"a":[1]}}', 200),
        (b"[]", 400),
        (b"null", 400),
        (b'"text"', 400),
        (b'{"path":1}', 400),
        (b'{"path":"/"', 400),
        (b'{"path":"/"}x', 400),
        (b"\xff\xfe", 400),
        (b'{"path":"\\u0000"}', 400),
        (b'{"path":"' + b"a" * 5000 + b'"}', 400),
        (b"[" * 100_000, 400),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_messages_of_unary_calls(envd, body, status):
    answer = post(envd, UNARY, body, **JSON)

    assert answer.status_code == status
    if status != 200:
        assert answer.json()["code"] == "invalid_argument"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_argument"),  # a server stream has exactly one message
        (frame(TRUE) * 2, "invalid_argument"),
        (frame(TRUE)[:3], "invalid_argument"),
        (frame(TRUE)[:-1], "invalid_argument"),
        (b"\x01" + frame(TRUE)[1:], "internal"),  # compressed, where nothing was agreed on
        (b"\x02" + frame(TRUE)[1:], "invalid_argument"),  # a client ends by ending
        (b"\x80" + frame(TRUE)[1:], "invalid_argument"),
        (b"\0\xff\xff\xff\xff", "resource_exhausted"),
        (struct.pack(">BI", 0, 4) + b"nope", "invalid_argument"),
        (frame([]), "invalid_argument"),
        (frame({}), "invalid_argument"),
        (frame({"process": {}}), "invalid_argument"),
        (frame({"process": {"cmd": "/no/such/program"}}), "invalid_argument"),
        (frame({"process": {"cmd": "/bin/true", "cwd": "/no/such"}}), "invalid_argument"),
        (frame({"process": {"cmd": "/bin/true", "envs": {"A=B": "c"}}}), "invalid_argument"),
        (frame({"process": {"cmd": "/bin/true", "args": ["a\0b"]}}), "invalid_argument"),
        (frame({**TRUE, "pty": {"size": {"cols": 70000, "rows": 1}}}), "invalid_argument"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_stream_that_is_wrong_ends_with_its_code(envd, body, code):
    answer = post(envd, STREAM, body, **CONNECT_JSON)
    end = end_of(answer)

    assert answer.headers["content-type"] == "application/connect+json"
    assert end["error"]["code"] == code
    assert end["error"]["message"]


def test_envelopes_come_one_by_one_and_the_end_last(envd):
    command = {"process": {"cmd": "/bin/sh", "args": ["-c", "echo a; sleep 0.2; echo b"]}}
    answer = post(envd, STREAM, frame(command), **CONNECT_JSON)
    messages = list(envelopes([answer.content]))

    assert list(messages[0]["event"]) == ["start"]
    assert [base64.b64decode(m["event"]["data"]["stdout"]) for m in messages[1:3]] == [
        b"a\n",
        b"b\n",
    ]
    assert list(messages[-2]["event"]) == ["end"]
    assert messages[-1] == {"END": {}}


@pytest.mark.parametrize(
    ("method", "message", "status", "code"),
    [
        ("filesystem.Filesystem/Stat", {"path": "/none"}, 404, "not_found"),
        ("filesystem.Filesystem/Stat", {"path": "/etc/passwd/x"}, 404, "not_found"),
        ("filesystem.Filesystem/ListDir", {"path": "/none"}, 404, "not_found"),
        ("filesystem.Filesystem/ListDir", {"path": "/etc/passwd"}, 400, "invalid_argument"),
        ("filesystem.Filesystem/ListDir", {"path": "/", "depth": -1}, 400, "invalid_argument"),
        ("filesystem.Filesystem/MakeDir", {"path": "/etc"}, 409, "already_exists"),
        ("filesystem.Filesystem/MakeDir", {"path": "/etc/passwd"}, 400, "invalid_argument"),
        (
            "filesystem.Filesystem/Move",
            {"source": "/none", "destination": "/tmp/x"},
            404,
            "not_found",
        ),
        ("filesystem.Filesystem/Move", {"source": "/none"}, 400, "invalid_argument"),
        ("filesystem.Filesystem/Remove", {"path": "/none/none"}, 200, None),
        ("filesystem.Filesystem/Remove", {"path": "/"}, 400, "invalid_argument"),
        ("filesystem.Filesystem/CreateWatcher", {"path": "/none"}, 404, "not_found"),
        ("filesystem.Filesystem/CreateWatcher", {"path": "/etc/passwd"}, 400, "invalid_argument"),
        ("filesystem.Filesystem/GetWatcherEvents", {"watcherId": "w0"}, 404, "not_found"),
        ("filesystem.Filesystem/RemoveWatcher", {"watcher_id": "w0"}, 404, "not_found"),
        ("process.Process/SendSignal", {"process": {"pid": 1}, "signal": 9}, 404, "not_found"),
        ("process.Process/SendSignal", {"signal": 9}, 400, "invalid_argument"),
        ("process.Process/SendSignal", {"process": {}, "signal": 9}, 400, "invalid_argument"),
        ("process.Process/SendSignal", {"process": {"pid": 1}}, 501, "unimplemented"),
        ("process.Process/SendInput", {"process": {"tag": "none"}}, 404, "not_found"),
        ("process.Process/CloseStdin", {"process": {"pid": 4294967295}}, 404, "not_found"),
        ("process.Process/Update", {"process": {"pid": 4294967296}}, 404, "not_found"),
        ("process.Process/List", {}, 200, None),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_errors_have_the_code_and_status_of_the_contract(envd, method, message, status, code):
    answer = envd.rpc(method, message)

    assert answer.status_code == status
    assert answer.json().get("code") == code


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/files", {}, b"", 400),
        ("GET", "/files?path=/none", {}, b"", 404),
        ("GET", "/files?path=/etc", {}, b"", 400),
        ("GET", "/files?path=/dev/zero", {}, b"", 400),
        ("GET", "/files?path=/etc/passwd&username=none", {}, b"", 401),
        ("GET", "/files?path=/etc/passwd", {"Accept-Encoding": "br, identity;q=0"}, b"", 406),
        ("GET", "/files?path=/etc/passwd", {"Range": "bytes=99999999-"}, b"", 416),
        ("POST", "/files", {"Content-Type": "application/octet-stream"}, b"x", 400),
        ("POST", "/files?path=/tmp/x", {"Content-Type": "text/plain"}, b"x", 400),
        ("POST", "/files?path=/tmp/x", {"Content-Encoding": "br"}, b"x", 400),
        ("POST", "/files?path=/tmp/x", {"Content-Encoding": "gzip"}, b"not gzip", 400),
        ("POST", "/files?path=/etc", {"Content-Type": "application/octet-stream"}, b"x", 400),
        ("POST", "/files?path=/tmp/x", {"Content-Type": "multipart/form-data"}, b"x", 400),
        (
            "POST",
            "/files",
            {"Content-Type": "multipart/form-data; boundary=b"},
            b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
            400,
        ),
        ("POST", "/files/compose", {}, b"{}", 400),
        ("POST", "/files/compose", {}, b'{"source_paths":["/none"],"destination":"/tmp/y"}', 404),
        ("POST", "/init", {}, b"[]", 400),
        ("DELETE", "/files", {}, b"", 405),
        ("POST", "/health", {}, b"", 405),
        ("GET", "/nothing", {}, b"", 404),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_rest_errors_are_json_with_their_status(envd, method, path, headers, body, status):
    answer = envd.http.request(method, path, headers=headers, content=body)

    assert answer.status_code == status
    assert answer.json()["code"] == status
    assert answer.json()["message"]


def test_a_process_is_killed_at_its_time_and_the_stream_says_so(envd):
    begun = time.monotonic()
    command = {"process": {"cmd": "/bin/sleep", "args": ["30"]}, "stdin": False}
    events = envd.stream("process.Process/Start", command, **{"Connect-Timeout-Ms": "200"})

    assert time.monotonic() - begun < 20
    assert events[-2]["event"]["end"]["error"] == "signal: killed"
    assert events[-1]["END"]["error"]["code"] == "deadline_exceeded"


def test_a_message_over_the_limit_is_refused_before_it_is_whole(envd):
    body = struct.pack(">BI", 0, 65 << 20) + b"x"
    end = end_of(post(envd, STREAM, body, **CONNECT_JSON))

    assert end["error"]["code"] == "resource_exhausted"
    assert json.dumps(end)
