"""A web server that says what a test wants it to say."""

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any


class Site(socketserver.ThreadingTCPServer):
    """One port of 127.0.0.1; `answers` maps a path to (status, headers, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.token = ""
        """Wanted for everything but the token itself; empty: nothing is."""
        self.seen: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization")
        self.server.seen.append((self.path, authorization))
        path = self.path.partition("?")[0]
        status, headers, body = self.server.answers.get(path, (404, {}, b""))
        wanted = f"Bearer {self.server.token}"
        if self.server.token and path != "/token" and authorization != wanted:
            realm = f"{self.server.url}/token?fixed=1"
            challenge = f'Bearer realm="{realm}",service="s",scope="repository:a/b:pull"'
            status, headers, body = 401, {"WWW-Authenticate": challenge}, b""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()
