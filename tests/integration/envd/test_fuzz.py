"""Requests made up by hypothesis for every route: none is answered by a 5xx that is our fault, and none ends envd."""

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import httpx
import pytest
from connect_client import TOKEN, Envd, envelopes, new_client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opene2b.envd.app import App
from opene2b.envd.config import Config

EXAMPLES = int(os.environ.get("OPENE2B_FUZZ_EXAMPLES", "150"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
OURS = {500, 502, 503, 504}
"""501 says that something is not offered, 507 that a disk is full: both are answers."""


# What it makes up may be "remove /": envd gives up root, when it has imported all that it needs.
AS_NOBODY = """
import os
import shutil  # what the reading of arguments would import too late
import opene2b.envd.__main__ as envd
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
envd.main()
"""


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    """Where it may do what it likes; not below pytest's own directories, which are closed to others."""
    with tempfile.TemporaryDirectory(prefix="opene2b-fuzz-") as directory:
        os.chmod(directory, 0o777)
        yield directory


@pytest.fixture(scope="module")
def target(home: str) -> Iterator[Envd]:
    read, write = os.pipe()
    os.write(write, json.dumps({"access_token": TOKEN}).encode())
    os.close(write)
    process = subprocess.Popen(
        [sys.executable, "-c", AS_NOBODY, "--config-fd", str(read), "--workdir", home],
        pass_fds=(read,),
        stdout=subprocess.PIPE,
        cwd=home,
    )
    os.close(read)
    port = json.loads(process.stdout.readline())["port"]
    client = new_client(port, http2=False)
    try:
        yield Envd(port=port, pid=process.pid, http=client)
        assert process.poll() is None, "envd has ended"
    finally:
        client.close()
        process.terminate()
        process.wait(10)
        process.stdout.close()


def routes() -> tuple[list[str], list[str]]:
    app = App(Config(), version="0")
    unary = [name for name, spec in app.methods.items() if spec.unary is not None]
    return sorted(unary), sorted(set(app.methods) - set(unary))


UNARY, STREAMS = routes()

names = st.sampled_from(
    [
        "path",
        "source",
        "destination",
        "depth",
        "process",
        "pid",
        "tag",
        "signal",
        "input",
        "pty",
        "stdin",
        "size",
        "rows",
        "cols",
        "recursive",
        "watcherId",
        "includeEntry",
        "cmd",
        "args",
        "envs",
        "cwd",
        "start",
        "data",
        "keepalive",
        "source_paths",
        "username",
    ]
)
paths = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", ".", "..", "a", "a/b", "../../etc", "~", "~/x", "x" * 300, "a\0b", "/none"]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), paths),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(names, st.text(max_size=8)), inner, max_size=5),
    ),
    max_leaves=12,
)
messages = st.dictionaries(names, values, max_size=6)
bodies = st.one_of(
    messages.map(lambda message: json.dumps(message).encode()), st.binary(max_size=300)
)
header_values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(
    str.strip
)
headers = st.dictionaries(
    st.sampled_from(
        [
            "Connect-Timeout-Ms",
            "Connect-Protocol-Version",
            "Connect-Content-Encoding",
            "Range",
            "Content-Encoding",
            "Accept-Encoding",
            "Authorization",
            "If-None-Match",
            "If-Range",
            "If-Modified-Since",
            "Keepalive-Ping-Interval",
            "X-Metadata-a",
            "Expect",
            "Upgrade",
        ]
    ),
    st.one_of(
        header_values,
        st.sampled_from(
            ["1", "identity", "gzip", "bytes=0-", "bytes=5-1", "Basic bm9ib2R5Og==", "*"]
        ),
    ),
    max_size=4,
)


def check(answer: httpx.Response) -> None:
    assert answer.status_code not in OURS, (answer.status_code, answer.text[:300])


@FUZZ
@given(method=st.sampled_from(UNARY), body=bodies, more=headers, binary=st.booleans())
def test_unary_calls(target: Envd, method, body, more, binary) -> None:
    kind = "application/proto" if binary else "application/json"
    if more.get("Connect-Timeout-Ms", "1000").isdigit():
        more["Connect-Timeout-Ms"] = "20000"  # 504 is the answer to a time that is too short
    answer = target.http.post(f"/{method}", content=body, headers={**more, "Content-Type": kind})

    check(answer)


@FUZZ
@given(
    method=st.sampled_from(STREAMS),
    message=bodies,
    flags=st.sampled_from([0, 0, 0, 1, 2, 255]),
    cut=st.integers(0, 400),
    more=headers,
    binary=st.booleans(),
)
def test_streams(target: Envd, method, message, flags, cut, more, binary) -> None:
    kind = "proto" if binary else "json"
    more["Connect-Timeout-Ms"] = "200"
    body = (struct.pack(">BI", flags, len(message)) + message)[: cut or None]
    answer = target.http.post(
        f"/{method}",
        content=body,
        headers={**more, "Content-Type": f"application/connect+{kind}"},
    )

    check(answer)
    if answer.status_code == 200 and not binary:
        end = list(envelopes([answer.content]))[-1]["END"]
        code = end.get("error", {}).get("code")
        assert code != "unknown"
        assert code != "internal" or flags in {1, 255}, end


@FUZZ
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE"]),
    route=st.sampled_from(["/files", "/files/compose", "/envs", "/metrics", "/health", "/x", "/"]),
    path=st.one_of(paths.map(lambda text: text.encode(errors="ignore")), st.binary(max_size=40)),
    user=st.one_of(st.none(), st.sampled_from([b"root", b"nobody", b"none", b"", b"\xff"])),
    body=bodies,
    kind=st.sampled_from(
        ["application/octet-stream", "multipart/form-data; boundary=x", "application/json", ""]
    ),
    more=headers,
)
def test_rest(target: Envd, method, route, path, user, body, kind, more) -> None:
    query = f"?path={quote_from_bytes(path)}"
    if user is not None:
        query += f"&username={quote_from_bytes(user)}"
    answer = target.http.request(
        method, route + query, content=body, headers={**more, "Content-Type": kind}
    )

    check(answer)
    if answer.status_code >= 400 and method != "HEAD":
        assert answer.json()["code"] == answer.status_code


@FUZZ
@given(path=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=40))
def test_paths_mean_the_same_to_every_route(target: Envd, home, path) -> None:
    """What is written under a name is found under it, and nowhere but below the directory where it belongs."""
    answer = target.http.post(
        "/files",
        params={"path": f"{home}/w/{path}"},
        content=b"x",
        headers={"Content-Type": "application/octet-stream"},
    )
    check(answer)
    if answer.status_code != 200:
        return
    [info] = answer.json()
    stat = target.rpc("filesystem.Filesystem/Stat", {"path": info["path"]})
    read = target.http.get("/files", params={"path": f"{home}/w/{path}"})

    assert stat.json()["entry"]["path"] == info["path"]
    assert os.path.normpath(f"{home}/w/{path}") == info["path"]
    assert read.content == b"x"


def test_it_is_still_there(target: Envd) -> None:
    assert target.http.get("/health").status_code == 204
