"""Keepalives of streams. Source: E2B envd contract, `Keepalive-Ping-Interval`."""

from opene2b.connect.http import Request

DEFAULT_S = 90.0
MOST_S = 3600


def interval(request: Request) -> float:
    """Seconds of silence after which a keepalive is sent."""
    text = request.headers.get("keepalive-ping-interval", "")
    if text.isascii() and text.isdigit() and 0 < int(text) <= MOST_S:
        return float(int(text))
    return DEFAULT_S
