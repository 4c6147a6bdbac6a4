"""Kill the server's processes at random under load, and compare what clients were told with what is.

    .venv/bin/python tests/chaos/chaos.py [--kills 200] [--seed 1] [--workers 4]

Every worker drives its own sandboxes with the stock SDK: creates, commands, files, pauses (with memory and without),
connects, kills. Meanwhile the control plane, the proxy, the node agent and the daemons inside are killed
with SIGKILL. At the end each sandbox must be in a state that its client was told, or asked for last; with its disk, and its
memory where that was not given up. The seed fixes what is tried and who is killed; when things happen is the machine's.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import real_server  # found beside, by the line above
from e2b import Sandbox, SandboxState

PAUSE_S = (0.3, 1.2)
"""Between two kills."""
SETTLE_LIMIT_S = 30.0
TARGETS = ("api", "proxy", "node", "envd")
RUNNING, PAUSED, GONE = "running", "paused", "gone"


@dataclass
class Known:
    """What a client knows of one of its sandboxes."""

    id: str
    mark: str
    may_be: set[str] = field(default_factory=lambda: {RUNNING})
    """More than one state where the outcome of its last request is not known."""
    has_memory: bool = True
    """What it put into memory must still be there."""
    has_disk: bool = False
    """Its mark was written, and that was told."""


class Load:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts: collections.Counter[str] = collections.Counter()
        self.known: list[Known] = []
        self.ended = threading.Event()
        self.unclaimed = 0
        """Creates that failed for their client: the sandbox may be there, and nobody has its id."""

    def count(self, name: str, exc: BaseException | None = None) -> None:
        self.counts[name if exc is None else f"{name} failed: {type(exc).__name__}"] += 1

    def work(self, number: int) -> None:
        dice = random.Random(f"{self.seed} {number}")
        mine: list[tuple[Known, Sandbox]] = []
        while not self.ended.is_set():
            if len(mine) < 3 and (not mine or dice.random() < 0.3):
                self.create(dice, mine)
                continue
            known, sandbox = dice.choice(mine)
            chosen = dice.choices(
                (self.command, self.pause, self.connect, self.kill), (5, 3, 3, 1)
            )[0]
            chosen(dice, known, sandbox)
            if known.may_be == {GONE}:
                mine.remove((known, sandbox))

    def create(self, dice: random.Random, mine: list[tuple[Known, Sandbox]]) -> None:
        try:
            sandbox = Sandbox.create(timeout=3000)
        except Exception as exc:
            self.unclaimed += 1
            self.count("create", exc)
            return
        self.count("create")
        known = Known(id=sandbox.sandbox_id, mark=f"{dice.getrandbits(32):x}")
        self.known.append(known)
        mine.append((known, sandbox))
        self.leave_mark(known, sandbox)

    def leave_mark(self, known: Known, sandbox: Sandbox) -> None:
        for _ in range(20):
            try:
                sandbox.commands.run(
                    f"echo {known.mark} | tee mark > /dev/shm/mark; sync", timeout=20
                )
            except Exception as exc:
                self.count("mark", exc)
                time.sleep(0.3)
            else:
                known.has_disk = True
                return
        known.has_memory = False

    def command(self, dice: random.Random, known: Known, sandbox: Sandbox) -> None:
        if known.may_be != {RUNNING}:
            return
        try:
            result = sandbox.commands.run("echo hello", timeout=20)
        except Exception as exc:
            self.count("command", exc)
        else:
            self.count("command" if result.stdout == "hello\n" else "command WITH WRONG OUTPUT")

    def pause(self, dice: random.Random, known: Known, sandbox: Sandbox) -> None:
        mode = "full" if dice.random() < 0.8 else "filesystem"
        before = set(known.may_be)
        if mode == "filesystem":
            known.has_memory = False
        known.may_be |= {PAUSED}
        try:
            sandbox.pause(mode=mode)
        except Exception as exc:
            self.count("pause", exc)
            if type(exc).__name__ == "SandboxNotFoundException" and GONE not in before:
                self.count(f"pause FOUND NO SANDBOX {known.id}")
        else:
            self.count("pause")
            known.may_be = {PAUSED}

    def connect(self, dice: random.Random, known: Known, sandbox: Sandbox) -> None:
        before = set(known.may_be)
        known.may_be |= {RUNNING}
        try:
            sandbox.connect(timeout=3000)
        except Exception as exc:
            self.count("connect", exc)
            if type(exc).__name__ == "SandboxNotFoundException" and GONE not in before:
                self.count(f"connect FOUND NO SANDBOX {known.id}")
        else:
            self.count("connect")
            known.may_be = {RUNNING}

    def kill(self, dice: random.Random, known: Known, sandbox: Sandbox) -> None:
        known.may_be |= {GONE}
        for _ in range(20):
            try:
                sandbox.kill()
            except Exception as exc:
                self.count("kill", exc)
                time.sleep(0.3)
            else:
                self.count("kill")
                known.may_be = {GONE}
                return


class Killer:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(f"{seed} killer")
        self.counts: collections.Counter[str] = collections.Counter()
        self.recovered_s: list[float] = []

    def strike(self) -> None:
        target = self.dice.choice(TARGETS)
        pid = self.find(target)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.counts[target] += 1
        begun = time.monotonic()
        while not serves():
            if time.monotonic() - begun > SETTLE_LIMIT_S:
                raise SystemExit(f"the server did not come back after the death of {target}")
            time.sleep(0.01)
        self.recovered_s.append(time.monotonic() - begun)

    def find(self, target: str) -> int | None:
        if target in {"api", "proxy", "node"}:
            try:
                children = json.loads((real_server.HOME / "run/children.json").read_text())
                return int(children[target][0])
            except (OSError, ValueError, KeyError):
                return None
        inside = daemons()
        return self.dice.choice(inside) if inside else None


def daemons() -> list[int]:
    """The envds in sandboxes of this home's server."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            sandbox_id = (path / "cgroup").read_text().partition("/opene2b/")[2].partition("\n")[0]
            is_envd = (path / "comm").read_text().strip() == "envd"
            if (
                sandbox_id
                and is_envd
                and (real_server.HOME / "node/sandboxes" / sandbox_id).exists()
            ):
                found.append(int(path.name))
    return found


def serves() -> bool:
    """A request of a client gets through to the store and the proxy answers."""
    server = real_server.Server(env={})
    try:
        status, _, _ = server.request("GET", "/v2/sandboxes?limit=1")
        if status != 200:
            return False
        with urllib.request.urlopen(server.proxy_url, timeout=2):
            return True
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code < 500
    except OSError:
        return False


def states() -> dict[str, str]:
    found = {}
    pages = Sandbox.list()
    while pages.has_next:
        for info in pages.next_items():
            found[info.sandbox_id] = PAUSED if info.state is SandboxState.PAUSED else RUNNING
    return found


def marks(known: Known) -> tuple[str, str] | None:
    """What is on its disk and in its memory. A daemon that was killed in a paused sandbox ends when that goes on, and is
    there again a moment later."""
    until = time.monotonic() + 15
    while True:
        try:
            sandbox = Sandbox.connect(known.id, timeout=600)
            said = [
                sandbox.commands.run(f"cat {path} || true", timeout=30).stdout.strip()
                for path in ("mark", "/dev/shm/mark")
            ]
        except Exception:
            if time.monotonic() > until:
                return None
            time.sleep(0.3)
        else:
            return said[0], said[1]


def judge(load: Load) -> list[str]:
    """What is wrong, in sentences."""
    wrong = [name for name in load.counts if "WRONG" in name or "FOUND NO" in name]
    until = time.monotonic() + SETTLE_LIMIT_S
    while True:
        found = states()
        off = [known for known in load.known if found.get(known.id, GONE) not in known.may_be]
        if not off or time.monotonic() > until:
            break
        time.sleep(0.5)
    for known in off:
        wrong.append(f"{known.id} is {found.get(known.id, GONE)}, told {sorted(known.may_be)}")
    for known in load.known:
        if known.id not in found:
            continue
        answers = marks(known)
        if answers is None:
            wrong.append(f"{known.id} does not answer")
            continue
        disk, memory = answers
        if known.has_disk and disk != known.mark:
            wrong.append(f"{known.id} has lost its disk: {disk!r}")
        if known.has_disk and known.has_memory and memory != known.mark:
            wrong.append(f"{known.id} has lost its memory: {memory!r}")
    extra = found.keys() - {known.id for known in load.known}
    if len(extra) > load.unclaimed:
        wrong.append(f"{len(extra)} sandboxes that nobody made, {load.unclaimed} creates failed")
    return wrong


def run(kills: int, seed: int, workers: int) -> int:
    env = real_server.server_env()
    subprocess.run([*real_server.COMMAND, "setup-base"], env=env, check=True, timeout=600)
    subprocess.run([*real_server.COMMAND, "down"], env=env, check=True, timeout=60)
    # Another server of this machine may have sandboxes.
    others = set(real_server.leftovers())
    with tempfile.TemporaryDirectory() as scratch:
        process = real_server.start_server(env, Path(scratch) / "serve.log")
        try:
            os.environ.update(real_server.Server(env=env).client_env)
            load, killer = Load(seed), Killer(seed)
            threads = [threading.Thread(target=load.work, args=(n,)) for n in range(workers)]
            for thread in threads:
                thread.start()
            try:
                while sum(killer.counts.values()) < kills:
                    time.sleep(killer.dice.uniform(*PAUSE_S))
                    killer.strike()
            finally:
                load.ended.set()
                for thread in threads:
                    thread.join()
            wrong = judge(load)
        finally:
            real_server.stop_server(process)
            subprocess.run([*real_server.COMMAND, "down"], env=env, check=True, timeout=120)
    left = [item for item in real_server.leftovers() if item not in others]
    for name, count in sorted(load.counts.items()):
        print(f"{count:>6}  {name}")
    print("killed: " + ", ".join(f"{name} {count}" for name, count in killer.counts.most_common()))
    times = sorted(killer.recovered_s)
    print(f"back after: p50 {statistics.median(times):.2f} s, max {times[-1]:.2f} s")
    print(f"sandboxes {len(load.known)}, left behind {len(left)}, wrong {len(wrong)}, seed {seed}")
    for line in [*wrong, *left]:
        print(f"  {line}")
    return 1 if wrong or left else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    sys.exit(run(arguments.kills, arguments.seed, arguments.workers))


if __name__ == "__main__":
    main()
