"""Every method of the stock Python SDK's files, commands, terminals and git, sync and async, by one scenario each."""

import asyncio
import inspect
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from e2b import (
    AsyncSandbox,
    CommandExitException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    TimeoutException,
)
from e2b.sandbox.filesystem.filesystem import WriteEntry

CALLED: dict[str, set[str]] = {}
"""Class of the SDK -> names of its methods that were called."""
LIMIT_S = 20


class Recorder:
    """Passes everything on to a part of a sandbox, and remembers which of its methods were called."""

    def __init__(self, part: object) -> None:
        self.part = part
        self.called = CALLED.setdefault(
            f"{type(part).__module__.split('.')[1]}.{type(part).__name__}", set()
        )

    def __getattr__(self, name: str):
        self.called.add(name)
        return getattr(self.part, name)


class Box:
    def __init__(self, sandbox: Sandbox | AsyncSandbox) -> None:
        self.sandbox = sandbox
        self.files = Recorder(sandbox.files)
        self.commands = Recorder(sandbox.commands)
        self.pty = Recorder(sandbox.pty)
        self.git = Recorder(sandbox.git)


async def done(result):
    """The async SDK gives awaitables where the sync one gives results."""
    return await result if inspect.isawaitable(result) else result


async def collected(stream) -> bytes:
    if hasattr(stream, "__aiter__"):
        return b"".join([part async for part in stream])
    return b"".join(stream)


async def streamed(part, pid: int, pieces: list[bytes]) -> None:
    """Pieces in one call: sync takes them together, async one after the other."""
    if "data" in inspect.signature(part.stream_input).parameters:
        part.stream_input(pid, pieces)
        return
    handle = part.stream_input(pid)
    for piece in pieces:
        await handle.send(piece)
    await handle.close()


async def finished(handle, **callbacks):
    return await done(handle.wait(**callbacks))


@pytest.fixture(params=["sync", "async"])
async def box(request: pytest.FixtureRequest, server) -> AsyncIterator[Box]:
    kind = Sandbox if request.param == "sync" else AsyncSandbox
    sandbox = await done(kind.create(timeout=120))
    yield Box(sandbox)
    await done(sandbox.kill())


async def test_files(box: Box) -> None:
    files = box.files
    wrote = await done(files.write("a/text", "häy", metadata={"Kind": "x"}))
    await done(files.write("a/packed", b"p" * 100_000, gzip=True))
    await done(
        files.write_files([WriteEntry(path="b1", data="1"), WriteEntry(path="b2", data=b"2")])
    )
    texts = [await done(files.read("a/text")), await done(files.read("b2"))]
    packed = await done(files.read("a/packed", format="bytes", gzip=True))
    stream = await done(files.read("a/packed", format="stream"))
    streamed = await collected(stream)
    info = await done(files.get_info("a/text"))
    made = [await done(files.make_dir("d/e")), await done(files.make_dir("d/e"))]
    moved = await done(files.rename("b1", "d/moved"))
    listed = await done(files.list("/home/user/d", depth=2))
    await done(files.remove("d"))
    there = [await done(files.exists(name)) for name in ("a/text", "d", "b1")]

    assert wrote.path == "/home/user/a/text"
    assert texts == ["häy", "2"]
    assert bytes(packed) == streamed == b"p" * 100_000
    assert (info.type, info.size, info.owner, info.permissions) == (
        FileType.FILE,
        4,
        "user",
        "-rw-r--r--",
    )
    assert info.metadata == {"kind": "x"}
    assert made == [True, False]
    assert moved.path == "/home/user/d/moved"
    assert [entry.path for entry in listed] == ["/home/user/d/e", "/home/user/d/moved"]
    assert there == [True, False, False]


async def test_files_of_root_and_the_errors_of_files(box: Box) -> None:
    await done(box.files.write("/root/secret", "s", user="root"))
    info = await done(box.files.get_info("/root/secret", user="root"))
    with pytest.raises(NotFoundException):
        await done(box.files.read("none"))
    with pytest.raises(NotFoundException):
        await done(box.files.list("none"))
    with pytest.raises(InvalidArgumentException):
        await done(box.files.read("/etc"))
    with pytest.raises(InvalidArgumentException):
        await done(box.files.list("/etc/passwd"))

    assert info.owner == "root"


async def test_a_directory_is_watched(box: Box) -> None:
    seen: list[tuple[str, FilesystemEventType]] = []
    await done(box.files.make_dir("w/sub"))
    if isinstance(box.sandbox, AsyncSandbox):
        handle = await box.files.watch_dir(
            "w", on_event=lambda event: seen.append((event.name, event.type)), recursive=True
        )
    else:
        handle = box.files.watch_dir("w", recursive=True)
    await done(box.files.write("w/sub/new", "1"))
    await done(box.files.remove("w/sub/new"))
    wanted = {("sub/new", FilesystemEventType.CREATE), ("sub/new", FilesystemEventType.REMOVE)}
    until = time.monotonic() + LIMIT_S
    while not wanted <= set(seen) and time.monotonic() < until:
        if isinstance(box.sandbox, Sandbox):
            seen += [(event.name, event.type) for event in handle.get_new_events()]
        await asyncio.sleep(0.05)
    await done(handle.stop())

    assert wanted <= set(seen)


async def test_commands(box: Box) -> None:
    commands = box.commands
    result = await done(commands.run("echo $A; pwd; echo e >&2", envs={"A": "b"}, cwd="/tmp"))
    with pytest.raises(CommandExitException) as failed:
        await done(commands.run("exit 3"))
    with pytest.raises(TimeoutException):
        await done(commands.run("sleep 20", timeout=0.3))
    reader = await done(commands.run("cat", background=True, stdin=True))
    pids = [process.pid for process in await done(commands.list())]
    await done(commands.send_stdin(reader.pid, "one "))
    await streamed(commands, reader.pid, [b"two ", b"three"])
    other = await done(commands.connect(reader.pid))
    await done(commands.close_stdin(reader.pid))
    ends = [await finished(reader), await finished(other)]
    sleeper = await done(commands.run("sleep 100", background=True))
    killed = [await done(commands.kill(sleeper.pid)), await done(commands.kill(sleeper.pid))]
    with pytest.raises(CommandExitException):
        await finished(sleeper)

    assert (result.stdout, result.stderr) == ("b\n/tmp\n", "e\n")
    assert failed.value.exit_code == 3
    assert reader.pid in pids
    assert ends[0].stdout == "one two three"
    assert [end.exit_code for end in ends] == [0, 0]
    assert killed == [True, False]


async def test_a_terminal(box: Box) -> None:
    seen = bytearray()
    size = PtySize(rows=10, cols=50)
    if isinstance(box.sandbox, AsyncSandbox):
        shell = await box.pty.create(size, on_data=seen.extend, envs={"A": "b"})
    else:
        shell = box.pty.create(size, envs={"A": "b"})
    await done(box.pty.resize(shell.pid, PtySize(rows=11, cols=51)))
    await done(box.pty.send_stdin(shell.pid, b"stty size; echo $A\n"))
    await streamed(box.pty, shell.pid, [b"echo stre", b"amed\n", b"exit\n"])
    if isinstance(box.sandbox, AsyncSandbox):
        ended = await shell.wait()
    else:
        ended = shell.wait(on_pty=seen.extend)
    if isinstance(box.sandbox, AsyncSandbox):
        second = await box.pty.create(size, on_data=lambda data: None)
        watcher = await box.pty.connect(second.pid, on_data=lambda data: None)
    else:
        second = box.pty.create(size)
        watcher = box.pty.connect(second.pid)
    killed = await done(box.pty.kill(second.pid))
    for handle in (second, watcher):
        with pytest.raises(CommandExitException):
            await finished(handle)

    assert ended.exit_code == 0
    text = seen.decode()
    assert "11 51" in text
    assert "b\r\n" in text
    assert "streamed\r\n" in text.replace("echo streamed", "")
    assert killed is True


async def test_git(box: Box) -> None:
    git, work = box.git, "/home/user/work"
    await done(git.init("/home/user/origin.git", bare=True, initial_branch="main"))
    await done(git.init(work, initial_branch="main"))
    await done(git.configure_user("Somebody", "s@example.com"))
    await done(git.set_config("core.editor", "true"))
    name = await done(git.get_config("user.name"))
    await done(box.files.write(f"{work}/f", "one"))
    before = await done(git.status(work))
    await done(git.add(work))
    await done(git.commit(work, "first"))
    await done(git.remote_add(work, "origin", "/home/user/origin.git"))
    url = await done(git.remote_get(work, "origin"))
    await done(git.push(work, remote="origin", branch="main"))
    await done(git.create_branch(work, "other"))
    await done(git.checkout_branch(work, "main"))
    await done(git.delete_branch(work, "other"))
    branches = await done(git.branches(work))
    await done(git.clone("/home/user/origin.git", path="/home/user/copy"))
    await done(box.files.write("/home/user/copy/g", "two"))
    await done(git.add("/home/user/copy", files=["g"]))
    await done(git.commit("/home/user/copy", "second"))
    await done(git.push("/home/user/copy", remote="origin", branch="main"))
    await done(git.pull(work, remote="origin", branch="main"))
    pulled = await done(box.files.read(f"{work}/g"))
    await done(box.files.write(f"{work}/g", "changed"))
    await done(git.restore(work, ["g"]))
    restored = await done(box.files.read(f"{work}/g"))
    await done(git.reset(work, mode="hard", target="HEAD~1"))
    there = await done(box.files.exists(f"{work}/g"))
    await done(git.dangerously_authenticate("u", "secret"))

    assert name == "Somebody"
    assert before.has_changes
    assert url == "/home/user/origin.git"
    assert branches.current_branch == "main"
    assert branches.branches == ["main"]
    assert (pulled, restored, there) == ("two", "two", False)


async def test_signed_urls_are_for_one_file_one_way_and_their_time(box: Box) -> None:
    await done(box.files.write("s", "signed"))

    def through_proxy(url: str) -> str:
        # The name in the URL is that of a sandbox; here it is reached on this machine, by its header.
        parts = urlsplit(url)
        return f"{box.sandbox.connection_config._sandbox_url}{parts.path}?{parts.query}"

    def fetch(url: str, data: bytes | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(
            through_proxy(url),
            data=data,
            headers={
                "E2b-Sandbox-Id": box.sandbox.sandbox_id,
                "E2b-Sandbox-Port": "49983",
                "Content-Type": "application/octet-stream",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read()

    reading = await done(box.sandbox.download_url("s"))
    writing = await done(box.sandbox.upload_url("t", use_signature_expiration=60))
    late = await done(box.sandbox.download_url("s", use_signature_expiration=1))
    other = reading.replace("path=s", "path=t")
    answers = [fetch(reading), fetch(writing, b"put"), fetch(other)]
    await asyncio.sleep(2.1)
    answers.append(fetch(late))

    assert answers[0] == (200, b"signed")
    assert answers[1][0] == 200
    assert await done(box.files.read("t")) == "put"
    assert [status for status, _ in answers[2:]] == [401, 401]


def test_no_method_was_left_out() -> None:
    """Runs last: what the SDK has grown since is missing here, and this says which."""
    left = {}
    for sandbox in (Sandbox, AsyncSandbox):
        for part in ("files", "commands", "pty", "git"):
            kind = inspect.signature(getattr(sandbox, part).fget).return_annotation
            key = f"{kind.__module__.split('.')[1]}.{kind.__name__}"
            names = {
                name
                for name, value in inspect.getmembers(kind, callable)
                if not name.startswith("_")
            }
            left[key] = sorted(names - CALLED.get(key, set()))

    assert len(left) == 8
    assert {key: names for key, names in left.items() if names} == {}
