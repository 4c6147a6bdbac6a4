"""What must not grow or stall: many commands, a huge file each way, a million names.

    .venv/bin/python tests/performance/endure_envd.py [--commands 100000] [--gib 10] [--files 1000000]

Asked straight, without a sandbox around the daemon. Prints what was measured; ends with 1 where a bound is broken.
"""

import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

import bench_envd
from bench_envd import MIB, TOKEN, Daemon

GROWTH_LIMIT_KIB = 2 << 10
"""Of private memory, between the thousandth command and the last."""
TRANSFER_LIMIT_KIB = 32 << 10
STALL_LIMIT_S = 1.0
HEADERS = {"X-Access-Token": TOKEN}


def private_kib(daemon: Daemon) -> int:
    text = Path(f"/proc/{daemon.process.pid}/smaps_rollup").read_text()
    lines = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return sum(int(lines[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


def run(connection: http.client.HTTPConnection, command: list[str]) -> None:
    message = json.dumps(
        {"process": {"cmd": command[0], "args": command[1:]}, "stdin": False}
    ).encode()
    connection.request(
        "POST",
        "/process.Process/Start",
        b"\0" + struct.pack(">I", len(message)) + message,
        {**HEADERS, "Content-Type": "application/connect+json"},
    )
    body = connection.getresponse().read()
    assert b'"exited":true' in body, body


def commands(daemon: Daemon, count: int) -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    begun, early, lines = time.monotonic(), 0, []
    for number in range(1, count + 1):
        run(connection, ["/bin/echo", "hello"])
        if number in {1, 100, 1000} or number % max(count // 5, 1) == 0:
            print(f"  {number:>8} commands: {private_kib(daemon)} KiB private", flush=True)
        if number == 1000:
            early = private_kib(daemon)
    took = time.monotonic() - begun
    grown = private_kib(daemon) - early
    print(f"  {count / took:.0f} commands/s; {grown} KiB grown since the 1,000th")
    if count > 1000 and grown > GROWTH_LIMIT_KIB:
        lines.append(f"private memory grew by {grown} KiB over {count} commands")
    return lines


class Watcher(threading.Thread):
    """The most memory while something is done."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self.target = daemon
        self.before = self.most = private_kib(daemon)
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            self.most = max(self.most, private_kib(self.target))

    def __enter__(self) -> "Watcher":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


def transfer(daemon: Daemon, gib: int) -> list[str]:
    size = gib << 30
    wrong = []
    try:
        for name, work in (("upload", bench_envd.upload), ("download", bench_envd.download)):
            with Watcher(daemon) as watcher:
                begun = time.monotonic()
                work(daemon, size)
                took = time.monotonic() - begun
            grown = watcher.most - watcher.before
            print(f"  {name} of {gib} GiB: {size / took / 1e6:.0f} MB/s, at most {grown} KiB more")
            if grown > TRANSFER_LIMIT_KIB:
                wrong.append(f"{name} of {gib} GiB needed {grown} KiB")
    finally:
        Path(bench_envd.target()).unlink(missing_ok=True)
    return wrong


def listing(daemon: Daemon, count: int) -> list[str]:
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    place = tempfile.mkdtemp(prefix="opene2b-endure-", dir=shared)
    try:
        for number in range(count):
            os.mknod(f"{place}/{number:07}")
        answers: list[float] = []
        ended = threading.Event()

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
            while not ended.is_set():
                begun = time.monotonic()
                connection.request("GET", "/health")
                connection.getresponse().read()
                answers.append(time.monotonic() - begun)
                time.sleep(0.005)

        asker = threading.Thread(target=ask)
        with Watcher(daemon) as watcher:
            asker.start()
            begun = time.monotonic()
            body = json.dumps({"path": place}).encode()
            request = bench_envd.head(
                "POST",
                "/filesystem.Filesystem/ListDir",
                len(body),
                "Content-Type: application/json",
                "Connection: close",
            )
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=300) as connection:
                connection.sendall(request + body)
                size = bench_envd.drain(connection)
            took = time.monotonic() - begun
            ended.set()
            asker.join()
    finally:
        shutil.rmtree(place)
    print(
        f"  {count} names in {took:.1f} s, {size / MIB:.0f} MiB; at most {(watcher.most - watcher.before) / 1024:.0f} MiB"
        f" more; meanwhile GET /health: p50 {statistics.median(answers) * 1e3:.1f} ms,"
        f" max {max(answers) * 1e3:.0f} ms, {len(answers)} answers"
    )
    return ["GET /health stalled"] if max(answers) > STALL_LIMIT_S else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=100_000)
    parser.add_argument("--gib", type=int, default=10)
    parser.add_argument("--files", type=int, default=1_000_000)
    arguments = parser.parse_args()
    wrong: list[str] = []
    for name, work, amount in (
        ("transfers", transfer, arguments.gib),
        ("a large directory", listing, arguments.files),
        ("commands", commands, arguments.commands),
    ):
        if not amount:
            continue
        print(name, flush=True)
        daemon = Daemon()
        try:
            wrong += work(daemon, amount)
        finally:
            daemon.process.terminate()
            daemon.process.wait(10)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
