"""`make bench`: what a client waits for, measured through the stock Python SDK on this machine.

Prints a table and writes JSON. Every figure is a median with its spread, taken in one run; absolute times of
shared machines drift, so compare ratios: where a Docker engine answers, `docker run` and `docker exec` of a
small image are measured between our own samples.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import real_server  # found beside, by the line above
import transfers
from e2b import Sandbox

DOCKER_IMAGE = "opene2b-bench:1"


class Figures:
    """Samples in milliseconds (or another unit), by name, in the order of the table."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, object]] = {}

    def add(self, name: str, samples: list[float], unit: str = "ms", note: str = "") -> None:
        ordered = sorted(samples)

        def percentile(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        self.rows[name] = {
            "unit": unit,
            "n": len(ordered),
            "min": ordered[0],
            "p50": statistics.median(ordered),
            "p95": percentile(0.95),
            "p99": percentile(0.99),
            "max": ordered[-1],
            "note": note,
        }

    def table(self) -> str:
        lines = [f"{'':44}{'n':>5}{'min':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}  unit"]
        for name, row in self.rows.items():
            cells = "".join(f"{row[key]:>9.1f}" for key in ("min", "p50", "p95", "p99", "max"))
            lines.append(f"{name:44}{row['n']:>5}{cells}  {row['unit']} {row['note']}")
        return "\n".join(lines)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def measure(figures: Figures, rounds: int) -> None:
    # The first create of a process pays for its connections and imports: told apart.
    first = Sandbox.create(timeout=300)
    cold = timed(lambda: first.commands.run("true"))
    first.kill()
    creates, firsts, warms, kills = [], [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        sandbox = Sandbox.create(timeout=300)
        creates.append((time.perf_counter() - start) * 1e3)
        sandbox.commands.run("echo hello")
        firsts.append((time.perf_counter() - start) * 1e3)
        warms += [timed(lambda s=sandbox: s.commands.run("true")) for _ in range(5)]
        kills.append(timed(sandbox.kill))
    figures.add("create, until the API answers", creates)
    figures.add("create -> first command's output", firsts)
    figures.add("commands.run('true'), warm", warms)
    figures.add("commands.run('true'), first of the client", [cold])
    figures.add("kill", kills)


def measure_turns(figures: Figures, rounds: int) -> None:
    """Pause and resume; with memory, and from the disk alone."""
    sandbox = Sandbox.create(timeout=600)
    try:
        sandbox.commands.run("true")
        for name, mode in (("", "full"), (", disk alone", "filesystem")):
            pauses, resumes, firsts = [], [], []
            for _ in range(rounds if mode == "full" else max(rounds // 6, 3)):
                pauses.append(timed(lambda m=mode: sandbox.pause(mode=m)))
                start = time.perf_counter()
                sandbox.connect(timeout=600)
                resumes.append((time.perf_counter() - start) * 1e3)
                sandbox.commands.run("true")
                firsts.append((time.perf_counter() - start) * 1e3)
            figures.add(f"pause{name}", pauses)
            figures.add(f"resume{name}", resumes)
            figures.add(f"resume{name} -> first command's output", firsts)
    finally:
        sandbox.kill()


def measure_at_once(figures: Figures, count: int) -> None:
    totals, singles = [], []
    with ThreadPoolExecutor(count) as pool:
        for _ in range(5):
            made: list[Sandbox] = []

            def create(made: list[Sandbox] = made) -> None:
                made.append(Sandbox.create(timeout=300))

            start = time.perf_counter()
            singles += list(pool.map(lambda _: timed(create), range(count)))
            totals.append((time.perf_counter() - start) * 1e3)
            list(pool.map(lambda sandbox: sandbox.kill(), made))
    figures.add(f"{count} creates at once, all of them", totals)
    figures.add(f"{count} creates at once, each", singles)


def measure_memory(figures: Figures, count: int) -> None:
    """PSS of all processes of an idle sandbox (pid 1 and envd), with `count` of them alive."""
    made = [Sandbox.create(timeout=600) for _ in range(count)]
    try:
        for sandbox in made:
            sandbox.commands.run("true")
        samples = []
        for sandbox in made:
            total = 0
            for status in Path("/proc").glob("[0-9]*/cgroup"):
                with contextlib.suppress(OSError):
                    if f"/opene2b/{sandbox.sandbox_id}" in status.read_text():
                        rollup = (status.parent / "smaps_rollup").read_text()
                        total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1])
            samples.append(total / 1024)
        figures.add(f"PSS of an idle sandbox, {count} alive", samples, unit="MiB")
    finally:
        for sandbox in made:
            sandbox.kill()


@contextlib.contextmanager
def docker_image() -> Iterator[bool]:
    """A tiny image for the engine, if one answers; False otherwise."""
    docker, busybox = shutil.which("docker"), shutil.which("busybox")
    answers = docker and subprocess.run([docker, "info"], capture_output=True).returncode == 0
    if not answers or not busybox:
        yield False
        return
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(busybox, Path(scratch) / "sh")
        tar = subprocess.run(["tar", "-C", scratch, "-c", "sh"], capture_output=True, check=True)
        subprocess.run(
            [docker, "import", "-", DOCKER_IMAGE], input=tar.stdout, capture_output=True, check=True
        )
    try:
        yield True
    finally:
        subprocess.run([docker, "rmi", "-f", DOCKER_IMAGE], capture_output=True, check=False)


def measure_docker(figures: Figures, rounds: int) -> None:
    with docker_image() as there:
        if not there:
            print("no Docker engine (or no static busybox) here: its rows are left out")
            return
        name = f"opene2b-bench-{os.getpid()}"
        runs = [
            timed(
                lambda: subprocess.run(
                    ["docker", "run", "--rm", DOCKER_IMAGE, "/sh", "sh", "-c", ":"], check=True
                )
            )
            for _ in range(rounds)
        ]
        subprocess.run(
            ["docker", "run", "-d", "--name", name, DOCKER_IMAGE, "/sh", "sleep", "600"],
            check=True,
            capture_output=True,
        )
        try:
            execs = [
                timed(
                    lambda: subprocess.run(
                        ["docker", "exec", name, "/sh", "sh", "-c", ":"], check=True
                    )
                )
                for _ in range(rounds)
            ]
        finally:
            subprocess.run(["docker", "rm", "-f", name], check=True, capture_output=True)
        figures.add("docker run --rm (same machine, same run)", runs)
        figures.add("docker exec (same machine, same run)", execs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--alive", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("bench-results/latest.json"))
    arguments = parser.parse_args()
    env = real_server.server_env()
    subprocess.run(
        [*real_server.COMMAND, "setup-base"], env=env, check=True, timeout=real_server.BASE_LIMIT_S
    )
    subprocess.run([*real_server.COMMAND, "down"], env=env, check=True, timeout=60)
    with tempfile.TemporaryDirectory() as scratch:
        process = real_server.start_server(env, Path(scratch) / "serve.log")
        server = real_server.Server(env=env)
        os.environ.update(server.client_env)
        figures = Figures()
        try:
            time.sleep(
                1
            )  # The pool of network places fills; creates of a busy start are not the subject.
            measure(figures, arguments.rounds)
            measure_at_once(figures, arguments.at_once)
            measure_turns(figures, arguments.rounds)
            measure_memory(figures, arguments.alive)
            transfers.measure(figures.add, server.proxy_url)
            transfers.measure_envd_memory(figures.add, server.proxy_url)
            measure_docker(figures, min(arguments.rounds, 20))
        finally:
            real_server.stop_server(process)
            subprocess.run([*real_server.COMMAND, "down"], env=env, check=True, timeout=60)
    left = real_server.leftovers()
    print(figures.table())
    print(f"left behind on the host: {left or 'nothing'}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(
        json.dumps(
            {
                "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
                "python": platform.python_version(),
                "figures": figures.rows,
                "left_behind": left,
            },
            indent=2,
        )
    )
    print(f"written: {arguments.json}")
    if left:
        sys.exit(1)


if __name__ == "__main__":
    main()
