"""What the proxy answers itself: JSON for programs, a small page for people.

Source: E2B sandbox proxy contract, error bodies and the rule for HTML.
"""

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

BROWSER = re.compile(rb"mozilla|chrome|safari|firefox|edge|opera|msie", re.IGNORECASE)
FETCH_MODES = {b"cors", b"no-cors", b"same-origin", b"websocket"}
TRAFFIC_HEADER = "e2b-traffic-access-token"

PAGE = """<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fafafa; margin: 0; }}
main {{ max-width: 34rem; margin: 18vh auto 0; padding: 0 1.5rem; }}
h1 {{ font-size: 1.4rem; margin: 0 0 .5rem; }}
code {{ background: #eee; border-radius: 4px; padding: .1rem .35rem; }}
p {{ margin: .5rem 0; }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818; }} code {{ background: #333; }} }}
</style>
</head>
<body><main><h1>{title}</h1><p>{text}</p><p><small>{status} · OpenE2B</small></p></main></body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes

    def encode(self, *, with_body: bool, close: bool) -> bytes:
        """As a whole HTTP/1.1 response."""
        phrase = HTTPStatus(self.status).phrase
        head = (
            f"HTTP/1.1 {self.status} {phrase}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n"
            "Cache-Control: no-store\r\n"
            # What a page may learn from it, its own script could find out by the failure alone.
            "Access-Control-Allow-Origin: *\r\n"
            f"{'Connection: close' + chr(13) + chr(10) if close else ''}\r\n"
        )
        return head.encode() + (self.body if with_body else b"")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps a request from its sandbox."""

    status: int
    title: str
    message: str
    sandbox_id: str
    port: int | None = None
    """Sent only where the contract has it."""
    text: str = ""
    """For people, as HTML; the message where empty."""


def not_found(sandbox_id: str) -> Problem:
    return Problem(
        502,
        "Sandbox Not Found",
        "The sandbox was not found",  # wire: clients tell a dead sandbox by it
        sandbox_id,
        text=f"There is no running sandbox <code>{html.escape(sandbox_id)}</code>."
        " It may have ended, or its time is up.",
    )


def port_closed(sandbox_id: str, port: int) -> Problem:
    return Problem(
        502,
        "Closed Port Error",
        "The sandbox is running but port is not open",  # wire
        sandbox_id,
        port,
        text=f"The sandbox <code>{html.escape(sandbox_id)}</code> is running, but nothing listens on its port"
        f" <code>{port}</code>. Is the server in it started?",
    )


def no_answer(sandbox_id: str, port: int) -> Problem:
    return Problem(
        502,
        "No Answer",
        "The sandbox is running but its service closed the connection without a valid answer",
        sandbox_id,
        port,
    )


def unavailable(sandbox_id: str) -> Problem:
    return Problem(
        503,
        "Node Not Reachable",
        "The node agent of the sandbox cannot be reached right now",
        sandbox_id,
    )


def token_missing(sandbox_id: str) -> Problem:
    return Problem(
        403,
        "Missing Traffic Access Token",
        "Sandbox is secured with traffic access token."
        f" Token header '{TRAFFIC_HEADER}' is missing",  # wire
        sandbox_id,
    )


def token_wrong(sandbox_id: str) -> Problem:
    return Problem(
        403,
        "Invalid Traffic Access Token",
        "Sandbox is secured with traffic access token."
        f" Provided token in header '{TRAFFIC_HEADER}' is invalid",  # wire
        sandbox_id,
    )


def answer(problem: Problem, headers: Mapping[bytes, bytes]) -> Answer:
    """`headers`: of the request, names in lower case."""
    if wants_html(headers):
        page = PAGE.format(
            title=html.escape(problem.title),
            text=problem.text or html.escape(problem.message),
            status=problem.status,
        )
        return Answer(problem.status, "text/html; charset=utf-8", page.encode())
    body: dict[str, object] = {"sandboxId": problem.sandbox_id, "message": problem.message}
    if problem.port is not None:
        body["port"] = problem.port
    return as_json(problem.status, {**body, "code": problem.status})


def internal_route(path: str) -> Answer:
    return as_json(
        404, {"message": "This route is not open to the outside", "path": path[:500], "code": 404}
    )


def as_json(status: int, body: Mapping[str, object]) -> Answer:
    return Answer(status, "application/json; charset=utf-8", json.dumps(body).encode())


def plain(status: int, message: str) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", message.encode())


def wants_html(headers: Mapping[bytes, bytes]) -> bool:
    mode = headers.get(b"sec-fetch-mode", b"").lower()
    if mode == b"navigate":
        return True
    if not BROWSER.search(headers.get(b"user-agent", b"")):
        return False
    accept = headers.get(b"accept", b"").lower()
    is_json_only = b"json" in accept and b"html" not in accept and b"*/*" not in accept
    return not (mode in FETCH_MODES or b"x-requested-with" in headers or is_json_only)
