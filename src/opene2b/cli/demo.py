"""`opene2b demo`: the whole journey through the stock Python SDK, each step with its time."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata

from opene2b.cli import down, first_key, launcher, layout, setup_base
from opene2b.cli.config import Config
from opene2b.core.errors import Internal, Unsupported

START_S = 60.0
STOP_S = 60.0
PORT = 8000
PROGRAM = """\
import platform, time
print("Python", platform.python_version(), "on", platform.system(), flush=True)
for number in range(1, 4):
    print("line", number, flush=True)
    time.sleep(0.1)
"""


def run(config: Config) -> int:
    layout.need_root("opene2b demo")
    try:
        sdk = metadata.version("e2b")
    except metadata.PackageNotFoundError as exc:
        raise Unsupported(
            "the demo uses the stock Python SDK, which is not installed: pip install e2b"
        ) from exc
    started = time.monotonic()
    if not setup_base.is_built(config.home):
        setup_base.run(config)
    with server(config):
        key = first_key.read(config)
        if key is None:
            raise Internal(f"{config.home.first_key} is missing: restart the server")
        os.environ["E2B_API_URL"] = f"http://localhost:{config.api_port}"
        os.environ["E2B_SANDBOX_URL"] = f"http://localhost:{config.proxy_port}"
        os.environ["E2B_API_KEY"] = key
        print(f"\nstock Python SDK: e2b {sdk}")
        journey(os.environ["E2B_SANDBOX_URL"])
    print(f"\nthe demo took {time.monotonic() - started:.1f} s")
    return 0


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{(time.perf_counter() - started) * 1000:8.0f} ms  {what}", flush=True)


def journey(proxy_url: str) -> None:
    from e2b import PtySize, Sandbox

    with step("create a sandbox"):
        sandbox = Sandbox.create(timeout=120)
    try:
        with step("write a file"):
            sandbox.files.write("demo/program.py", PROGRAM)
        with step("run it, its output streamed:"):
            done = sandbox.commands.run(
                "python3 demo/program.py",
                on_stdout=lambda text: print(
                    textwrap.indent(text.rstrip(), " " * 13 + "| "), flush=True
                ),
            )
        expect(done.stdout.endswith("line 3\n"), f"the program printed {done.stdout!r}")
        seen = bytearray()
        with step("open a terminal, type into it, close it"):
            terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
            sandbox.pty.send_stdin(terminal.pid, b"echo $((6 * 7)) in $(tty); exit\n")
            terminal.wait(on_pty=seen.extend)
        expect(b"42 in /dev/pts/" in seen, f"the terminal showed {bytes(seen)!r}")
        with step("list the files"):
            names = [entry.name for entry in sandbox.files.list("demo")]
        expect(names == ["program.py"], f"the list is {names}")
        with step(f"start a web server on 127.0.0.1:{PORT} inside"):
            sandbox.commands.run(
                f"python3 -m http.server {PORT} --bind 127.0.0.1 --directory demo",
                background=True,
            )
            page = fetch(proxy_url, sandbox.sandbox_id, PORT)
        with step("fetch a page from it through the proxy"):
            page = fetch(proxy_url, sandbox.sandbox_id, PORT)
        expect("program.py" in page, f"the page is {page[:200]!r}")
    finally:
        with step("kill the sandbox"):
            killed = sandbox.kill()
    expect(killed, "the sandbox was gone before it was killed")


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise Internal(f"the demo did not see what it should: {otherwise}")


def fetch(proxy_url: str, sandbox_id: str, port: int, *, limit_s: float = 15.0) -> str:
    """GET / of a service in a sandbox, addressed by headers; waits until it listens."""
    request = urllib.request.Request(  # noqa: S310 - our own http URL
        proxy_url + "/",
        headers={"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(port)},
    )
    until = time.monotonic() + limit_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - as above
                return str(response.read().decode())
        except urllib.error.HTTPError as exc:
            with exc:
                if exc.code != 502 or time.monotonic() > until:
                    raise Internal(
                        f"the proxy answered {exc.code}", detail=exc.read(2000).decode()
                    ) from exc
        time.sleep(0.05)


@contextlib.contextmanager
def server(config: Config) -> Iterator[None]:
    """The server that runs already, or one of our own that leaves nothing but the base template."""
    if layout.is_held(config.home):
        print("using the server that is running")
        yield
        return
    process = subprocess.Popen(launcher.command(launcher.opene2b("serve")))
    try:
        until = time.monotonic() + START_S
        while not is_healthy(config):
            if process.poll() is not None:
                raise Internal("the server did not start")
            if time.monotonic() > until:
                raise Internal(f"the server is not ready after {START_S:.0f} s")
            time.sleep(0.05)
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode == 0:
            down.run(config)
        else:
            print(f"the server ended with {process.returncode}", file=sys.stderr)


def is_healthy(config: Config) -> bool:
    try:
        with urllib.request.urlopen(
            f"http://localhost:{config.api_port}/health", timeout=2
        ) as response:
            return bool(response.status == 200)
    except OSError:
        return False
