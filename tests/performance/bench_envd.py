"""What the daemon in a sandbox does per second, asked straight, without the proxy and without a sandbox around it.

    .venv/bin/python tests/performance/bench_envd.py [--mib 256]

Prints a table: medians of rounds with their spread. Absolute figures are of this machine at this moment; `CPU` is the daemon's
own time, which noise of neighbours does not change much.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TOKEN = "bench"
MIB = 1 << 20
ROUNDS = 5
STATS = 2000
TICKS = os.sysconf("SC_CLK_TCK")


class Daemon:
    def __init__(self) -> None:
        read, write = os.pipe()
        os.write(write, json.dumps({"access_token": TOKEN}).encode())
        os.close(write)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "opene2b.envd", "--config-fd", str(read)],
            pass_fds=(read,),
            stdout=subprocess.PIPE,
        )
        os.close(read)
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline())["port"]

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)


def head(method: str, path: str, length: int, *more: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: bench",
        f"X-Access-Token: {TOKEN}",
        f"Content-Length: {length}",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def drain(connection: socket.socket) -> int:
    """Read to the end; the first bytes must say 200."""
    buffer = bytearray(MIB)
    count = connection.recv_into(buffer)
    assert buffer.startswith(b"HTTP/1.1 200"), bytes(buffer[:200])
    size = count
    while count := connection.recv_into(buffer):
        size += count
    return size


def stats(daemon: Daemon, size: int) -> int:
    body = b'{"path":"/etc"}'
    request = (
        head("POST", "/filesystem.Filesystem/Stat", len(body), "Content-Type: application/json")
        + body
    )
    with daemon.connect() as connection:
        for _ in range(STATS):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    return STATS


def output(daemon: Daemon, size: int) -> int:
    message = json.dumps(
        {"process": {"cmd": "/bin/sh", "args": ["-c", f"head -c {size} /dev/zero"]}, "stdin": False}
    ).encode()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    with daemon.connect() as connection:
        connection.sendall(
            head(
                "POST",
                "/process.Process/Start",
                len(body),
                "Content-Type: application/connect+json",
                "Connection: close",
            )
            + body
        )
        # base64 and envelopes: a third more than the output itself.
        assert drain(connection) > size * 4 // 3
    return size


def upload(daemon: Daemon, size: int) -> int:
    block = b"x" * MIB
    with daemon.connect() as connection:
        connection.sendall(
            head(
                "POST",
                f"/files?path={target()}",
                size,
                "Content-Type: application/octet-stream",
                "Connection: close",
            )
        )
        for _ in range(size // MIB):
            connection.sendall(block)
        drain(connection)
    return size


def download(daemon: Daemon, size: int) -> int:
    with daemon.connect() as connection:
        connection.sendall(head("GET", f"/files?path={target()}", 0, "Connection: close"))
        assert drain(connection) > size
    return size


def target() -> str:
    return f"{tempfile.gettempdir()}/opene2b-bench-envd"


def measure(daemon: Daemon, work: Callable[[Daemon, int], int], size: int, unit: float) -> str:
    rates, per_cpu = [], []
    for _ in range(ROUNDS):
        cpu, begun = daemon.cpu_s(), time.perf_counter()
        done = work(daemon, size) / unit
        rates.append(done / (time.perf_counter() - begun))
        per_cpu.append(done / max(daemon.cpu_s() - cpu, 1 / TICKS))
    return (
        f"{statistics.median(rates):>12.0f}{min(rates):>10.0f}{max(rates):>10.0f}"
        f"{statistics.median(per_cpu):>14.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    size = parser.parse_args().mib * MIB
    daemon = Daemon()
    try:
        print(f"{'':34}{'per second':>12}{'min':>10}{'max':>10}{'per CPU-second':>14}")
        for name, work, unit in (
            ("Stat, one connection, calls", stats, 1),
            ("output of a program, MB", output, 1e6),
            ("upload, MB", upload, 1e6),
            ("download, MB", download, 1e6),
        ):
            print(f"{name:34}{measure(daemon, work, size, unit)}")
    finally:
        daemon.process.terminate()
        daemon.process.wait(10)
        Path(target()).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
