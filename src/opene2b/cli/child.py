"""One process that `serve` keeps running."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from opene2b.cli.child_log import ChildLog
from opene2b.core.errors import Internal

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
STEADY_S = 10.0
"""A child that lived this long was well: the next failure counts from one again."""
MANY_DEATHS = 5
STOP_S = 15.0


class Child:
    """A supervised process: started, restarted when it dies, its output kept in a bounded log.

    child = Child("api", [...], env=env, log=path, say=print)
    task = group.create_task(child.keep())
    await child.stop()
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        self.name = name
        self.command = list(command)
        self.env = dict(env)
        self.log = log
        self.say = say
        self.process: asyncio.subprocess.Process | None = None
        self.may_give_up = True
        """Until the server was ready once: a server that cannot start should say so and end."""
        self.stopped = asyncio.Event()

    async def keep(self) -> None:
        """Run until `stop`. Raises Internal when it keeps dying before the server was ever ready."""
        pause_s, deaths = FIRST_PAUSE_S, 0
        log = ChildLog(self.log)
        try:
            while not self.stopped.is_set():
                started = time.monotonic()
                code = await self.once(log)
                if self.stopped.is_set():
                    return
                if time.monotonic() - started > STEADY_S:
                    pause_s, deaths = FIRST_PAUSE_S, 0
                deaths += 1
                if deaths % MANY_DEATHS == 0:
                    sentence = (
                        f"{self.name} keeps ending ({described(code)}). The last lines of {self.log}:"
                        f"\n{log.last_lines()}"
                    )
                    if self.may_give_up:
                        raise Internal(sentence)
                    self.say(sentence)
                elif not self.may_give_up:
                    self.say(f"{self.name} ended ({described(code)}) and is started again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopped.wait(), pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        finally:
            await self.kill()
            log.close()

    async def once(self, log: ChildLog) -> int:
        # A pipe of our own: with asyncio's, `wait` waits for its end as well, and what the child left running may hold it
        # open for ever (a helper of the agent's, frozen in a sandbox that was paused).
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            # Its own session: Ctrl-C reaches `serve` alone, which stops the children in order.
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                env=self.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        reader = asyncio.create_task(copy_output(reading, log))
        try:
            return await self.process.wait()
        finally:
            await asyncio.wait({reader}, timeout=0.5)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def stop(self) -> None:
        """Ask it to end, then insist."""
        self.stopped.set()
        process = self.process
        if process is None or process.returncode is not None:
            return
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            self.say(f"{self.name} did not stop in {STOP_S:.0f} s and is killed")
            await self.kill()

    async def kill(self) -> None:
        self.stopped.set()
        if self.process is not None and self.process.returncode is None:
            self.signal(signal.SIGKILL)
            await self.process.wait()

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


async def copy_output(reading: int, log: ChildLog) -> None:
    """Until its end. Closes the descriptor."""
    stream = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb", buffering=0)
    )
    try:
        while data := await stream.read(1 << 16):
            log.write(data)
    finally:
        transport.close()


def described(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
