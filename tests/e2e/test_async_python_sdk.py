"""The newest stock Python SDK, async, against a real server."""

import asyncio

import pytest
from e2b import AsyncSandbox, CommandExitException, PtySize


@pytest.fixture
async def sandbox():
    made = await AsyncSandbox.create(timeout=120)
    yield made
    await made.kill()


async def test_twenty_sandboxes_are_made_at_once_and_each_runs_its_own_command():
    made = await asyncio.gather(*(AsyncSandbox.create(timeout=120) for _ in range(20)))

    outputs = await asyncio.gather(
        *(sandbox.commands.run(f"echo {number}") for number, sandbox in enumerate(made))
    )

    assert [output.stdout for output in outputs] == [f"{number}\n" for number in range(20)]
    assert all(await asyncio.gather(*(sandbox.kill() for sandbox in made)))


async def test_commands_of_one_sandbox_run_at_the_same_time(sandbox):
    await sandbox.commands.run("mkfifo /tmp/meet")

    # Each waits for the other: in turn they would never end.
    results = await asyncio.gather(
        sandbox.commands.run("echo met > /tmp/meet"), sandbox.commands.run("cat /tmp/meet")
    )

    assert results[1].stdout == "met\n"


async def test_standard_input_is_streamed_to_a_command(sandbox):
    handle = await sandbox.commands.run("wc -c", background=True, stdin=True)

    await sandbox.commands.send_stdin(handle.pid, "x" * 100_000)
    await sandbox.commands.close_stdin(handle.pid)
    result = await handle.wait()

    assert result.stdout.strip() == "100000"


async def test_files_of_ten_megabytes_go_up_and_down_unchanged(sandbox):
    content = bytes(i * 31 % 256 for i in range(1 << 20)) * 10

    await sandbox.files.write("big", content)
    read = await sandbox.files.read("big", format="bytes")

    assert bytes(read) == content


async def test_a_terminal_echoes_what_is_typed(sandbox):
    seen = bytearray()
    terminal = await sandbox.pty.create(PtySize(rows=10, cols=40), on_data=seen.extend)

    await sandbox.pty.send_stdin(terminal.pid, b"echo $((40+2))x; exit\n")
    await terminal.wait()

    assert b"42x" in seen


async def test_a_killed_command_says_by_what(sandbox):
    handle = await sandbox.commands.run("sleep 100", background=True)

    await handle.kill()
    with pytest.raises(CommandExitException) as caught:
        await handle.wait()

    assert "signal: killed" in str(caught.value.error)


async def test_two_megabytes_of_output_arrive_whole(sandbox):
    result = await sandbox.commands.run("head -c 2000000 /dev/zero | tr '\\0' x")

    assert len(result.stdout) == 2_000_000


async def test_a_watched_directory_calls_back(sandbox):
    seen = []
    came = asyncio.Event()

    def on_event(event):
        seen.append((event.name, event.type.value))
        if event.name == "last":
            came.set()

    await sandbox.files.make_dir("watched")
    handle = await sandbox.files.watch_dir("watched", on_event)
    await sandbox.files.write("watched/first", "1")
    await sandbox.files.write("watched/last", "1")
    await asyncio.wait_for(came.wait(), 10)
    await handle.stop()

    assert seen[0] == ("first", "create")
    assert ("first", "write") in seen
