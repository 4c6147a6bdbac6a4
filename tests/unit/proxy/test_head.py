import pytest

from opene2b.proxy import head
from opene2b.proxy.head import BadHead, Framing

HOST = (b"Host", b"8000-iabc.e2b.app")


def request(*headers, method=b"GET", target=b"/", version="1.1"):
    return head.request(method, target, version, [HOST, *headers])


def response(*headers, status=200, method=b"GET", version="1.1"):
    return head.response(status, b"OK", version, list(headers), method=method)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/a?b", b"/a?b"),
        (b"*", b"*"),
        (b"http://8000-iabc.e2b.app/a?b", b"/a?b"),
        (b"HTTPS://8000-IABC.e2b.app/a", b"/a"),
        (b"http://8000-iabc.e2b.app", b"/"),
        (b"http://8000-iabc.e2b.app?b", b"/?b"),
    ],
)
def test_targets_are_passed_on_in_origin_form(target, expected):
    assert request(target=target).target == expected


@pytest.mark.parametrize(
    "target",
    [
        b"http://8000-iother.e2b.app/",
        b"http://user@8000-iabc.e2b.app/",
        b"http://8000-iabc.e2b.app:80/",
        b"http:///a",
        b"ftp://8000-iabc.e2b.app/",
        b"a",
        b"",
    ],
)
def test_other_targets_are_refused(target):
    with pytest.raises(BadHead, match="Invalid host"):
        request(target=target)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], Framing.NONE),
        ([(b"Content-Length", b"0")], Framing.LENGTH),
        ([(b"Content-Length", b"5 \t")], Framing.LENGTH),
        ([(b"Transfer-Encoding", b"Chunked")], Framing.CHUNKED),
    ],
)
def test_a_request_has_one_framing(headers, expected):
    assert request(*headers).framing is expected


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")],
        [(b"Content-Length", b"1"), (b"content-length", b"1")],
        [(b"Content-Length", b"1, 1")],
        [(b"Content-Length", b"+1")],
        [(b"Content-Length", b"1_0")],
        [(b"Content-Length", "²".encode())],
        [(b"Content-Length", b"")],
        [(b"Content-Length", b"9" * 19)],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"")],
        [(b"X", b"a\nb")],
        [(b"X", b"a\rb")],
        [(b"X", b"a\0b")],
        [(b"Host", b"other")],
        [(b"E2b-Traffic-Access-Token", b"a"), (b"e2b-traffic-access-token", b"b")],
    ],
)
def test_a_request_with_two_meanings_has_none(headers):
    with pytest.raises(BadHead):
        request(*headers)


@pytest.mark.parametrize("version", ["0.9", "2.0", "1.2"])
def test_other_versions_are_refused(version):
    with pytest.raises(BadHead) as refused:
        request(version=version)

    assert refused.value.status == 505


@pytest.mark.parametrize(
    ("headers", "version", "expected"),
    [
        ([(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")], "1.1", b"websocket"),
        (
            [(b"Connection", b"keep-alive, upgrade"), (b"Upgrade", b"websocket")],
            "1.1",
            b"websocket",
        ),
        ([(b"Upgrade", b"websocket")], "1.1", None),
        ([(b"Connection", b"Upgrade")], "1.1", None),
        ([(b"Connection", b"Upgrade"), (b"Upgrade", b"")], "1.1", None),
        ([(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")], "1.1", None),
        ([(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket, H2C")], "1.1", None),
        ([(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")], "1.0", None),
    ],
)
def test_an_upgrade_is_passed_on_where_it_is_meant(headers, version, expected):
    made = request(*headers, version=version)
    sent = head.for_sandbox(made, masked_host=None)

    assert made.upgrade == expected
    assert (b"Upgrade: websocket\r\n" in sent) is (expected is not None)


@pytest.mark.parametrize(
    ("headers", "version", "expected"),
    [
        ([], "1.1", True),
        ([(b"Connection", b"close")], "1.1", False),
        ([(b"Connection", b"x, Close")], "1.1", False),
        ([], "1.0", False),
        ([(b"Connection", b"Keep-Alive")], "1.0", True),
    ],
)
def test_who_keeps_the_connection(headers, version, expected):
    assert request(*headers, version=version).keeps_alive is expected
    assert response(*headers, (b"Content-Length", b"0"), version=version).keeps_alive is expected


def test_a_connection_header_cannot_take_away_what_frames_a_message():
    made = request((b"Connection", b"content-length, host"), (b"Content-Length", b"5"))
    sent = head.for_sandbox(made, masked_host=None)

    assert b"Content-Length: 5\r\n" in sent
    assert b"Host: 8000-iabc.e2b.app\r\n" in sent


def test_our_own_headers_and_hop_by_hop_ones_stay_here():
    made = request(
        (b"E2B-Sandbox-ID", b"iabc"),
        (b"E2b-Sandbox-Port", b"8000"),
        (b"E2B-Traffic-Access-Token", b"secret"),
        (b"Proxy-Authorization", b"a"),
        (b"TE", b"trailers"),
        (b"Keep-Alive", b"1"),
        (b"X-Access-Token", b"token"),
        (b"X-Forwarded-For", b"1.2.3.4"),
    )

    assert head.for_sandbox(made, masked_host=None) == (
        b"GET / HTTP/1.1\r\nHost: 8000-iabc.e2b.app\r\n"
        b"X-Access-Token: token\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("status", "method", "headers", "expected"),
    [
        (200, b"GET", [(b"Content-Length", b"5")], Framing.LENGTH),
        (200, b"GET", [(b"Transfer-Encoding", b"chunked")], Framing.CHUNKED),
        (200, b"GET", [], Framing.UNTIL_CLOSE),
        (200, b"HEAD", [(b"Content-Length", b"5")], Framing.NONE),
        (204, b"GET", [], Framing.NONE),
        (304, b"GET", [(b"Content-Length", b"5")], Framing.NONE),
        (100, b"POST", [], Framing.NONE),
    ],
)
def test_an_answer_has_one_framing(status, method, headers, expected):
    assert response(*headers, status=status, method=method).framing is expected
