"""The newest stock Python SDK, sync, against a real server."""

import re
import time

import httpx
import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    NotFoundException,
    PtySize,
    Sandbox,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from e2b.exceptions import SandboxException


@pytest.fixture
def sandbox():
    made = Sandbox.create(timeout=120)
    yield made
    made.kill()


def test_a_sandbox_runs_a_command_and_is_killed():
    made = Sandbox.create(timeout=60)

    result = made.commands.run("echo hello; id -un")

    assert result.stdout == "hello\nuser\n"
    assert made.is_running()
    assert made.kill() is True
    assert made.kill() is False
    assert not made.is_running()


def test_output_is_streamed_while_the_program_runs(sandbox):
    seen: list[tuple[str, float]] = []

    sandbox.commands.run(
        "for i in 1 2 3; do echo $i; sleep 0.3; done; echo bad >&2",
        on_stdout=lambda text: seen.append((text, time.monotonic())),
        on_stderr=lambda text: seen.append((text, time.monotonic())),
    )

    assert [text for text, _ in seen] == ["1\n", "2\n", "3\n", "bad\n"]
    # The first line came before the last was printed: 0.9 s of sleep lie between.
    assert seen[-1][1] - seen[0][1] > 0.5


def test_a_failing_command_raises_with_its_exit_code_and_output(sandbox):
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("echo out; echo err >&2; exit 7")

    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (
        7,
        "out\n",
        "err\n",
    )


def test_environment_of_sandbox_and_command_are_merged():
    made = Sandbox.create(envs={"A": "from create", "B": "from create"}, timeout=60)

    result = made.commands.run("echo $A/$B/$E2B_SANDBOX/$HOME", envs={"B": "from command"})

    assert result.stdout == "from create/from command/true//home/user\n"
    made.kill()


def test_a_command_in_the_background_takes_input_and_ends(sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)

    sandbox.commands.send_stdin(handle.pid, "some input\n")
    sandbox.commands.close_stdin(handle.pid)

    assert handle.wait().stdout == "some input\n"


def test_a_background_command_is_listed_connected_and_killed(sandbox):
    handle = sandbox.commands.run("sleep 100", background=True, timeout=0)

    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    again = sandbox.commands.connect(handle.pid)
    assert sandbox.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException):
        again.wait()
    assert sandbox.commands.kill(handle.pid) is False


def test_a_command_that_takes_too_long_is_ended(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("echo started > /tmp/started; sleep 50", timeout=1)

    left = sandbox.commands.run("ps -eo args | grep -c '^sleep 50' || true")
    assert left.stdout == "0\n"


def test_root_runs_commands_and_sudo_works(sandbox):
    assert sandbox.commands.run("id -u", user="root").stdout == "0\n"
    assert sandbox.commands.run("sudo id -u").stdout == "0\n"


def test_files_are_written_read_listed_renamed_and_removed(sandbox):
    info = sandbox.files.write("dir/hello.txt", "hello")

    assert info.path == "/home/user/dir/hello.txt"
    assert sandbox.files.read("dir/hello.txt") == "hello"
    assert [entry.name for entry in sandbox.files.list("dir")] == ["hello.txt"]
    sandbox.files.rename("dir/hello.txt", "dir/other.txt")
    assert sandbox.files.exists("dir/other.txt")
    assert not sandbox.files.exists("dir/hello.txt")
    entry = sandbox.files.get_info("dir/other.txt")
    assert (entry.size, entry.owner, entry.permissions) == (5, "user", "-rw-r--r--")
    sandbox.files.remove("dir")
    assert not sandbox.files.exists("dir")
    assert sandbox.files.make_dir("made") is True
    assert sandbox.files.make_dir("made") is False


def test_bytes_of_every_value_survive_a_round_trip(sandbox):
    content = bytes(range(256)) * 4096

    sandbox.files.write("/tmp/bytes.bin", content)

    assert bytes(sandbox.files.read("/tmp/bytes.bin", format="bytes")) == content
    assert b"".join(sandbox.files.read("/tmp/bytes.bin", format="stream")) == content


def test_several_files_are_written_at_once(sandbox):
    sandbox.files.write_files([{"path": f"many/{n}", "data": str(n)} for n in range(20)])

    assert sandbox.commands.run("cat many/* | wc -c").stdout.strip() == "30"


def test_reading_a_missing_file_raises_not_found(sandbox):
    with pytest.raises(NotFoundException):
        sandbox.files.read("/nowhere")


def test_a_terminal_runs_a_shell_is_resized_and_ends(sandbox):
    output = bytearray()
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))

    sandbox.pty.resize(terminal.pid, PtySize(rows=40, cols=100))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; echo $((6*7))-$TERM; exit 3\n")
    with pytest.raises(CommandExitException) as ended:
        terminal.wait(on_pty=output.extend)

    assert ended.value.exit_code == 3
    assert b"40 100" in output
    assert b"42-xterm-256color" in output


def test_a_server_on_the_sandbox_s_own_localhost_is_reached_through_the_proxy(sandbox, server):
    sandbox.commands.run(
        "mkdir -p /tmp/www && echo served > /tmp/www/index.html && cd /tmp/www && "
        "python3 -m http.server 8000 --bind 127.0.0.1",
        background=True,
    )
    sandbox.commands.run("for i in $(seq 50); do curl -sf 127.0.0.1:8000 && break; sleep 0.1; done")

    by_header = httpx.get(
        server.proxy_url,
        headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"},
    )
    by_host = httpx.get(server.proxy_url, headers={"Host": sandbox.get_host(8000)})
    closed = httpx.get(server.proxy_url, headers={"Host": sandbox.get_host(8001)})

    assert by_header.text == by_host.text == "served\n"
    assert closed.status_code == 502
    assert closed.json() == {
        "sandboxId": sandbox.sandbox_id,
        "message": "The sandbox is running but port is not open",
        "port": 8001,
        "code": 502,
    }


def test_list_filters_by_metadata_with_odd_characters():
    odd = {"user name": "a&b=c d/é%2F+", "run": "list-test"}
    made = Sandbox.create(metadata=odd, timeout=60)
    other = Sandbox.create(metadata={"run": "other"}, timeout=60)

    found = Sandbox.list(query=SandboxQuery(metadata=odd, state=[SandboxState.RUNNING]))
    items = found.next_items()

    assert [item.sandbox_id for item in items] == [made.sandbox_id]
    assert items[0].metadata == odd
    assert not found.has_next
    made.kill()
    other.kill()


def test_list_pages_through_all_in_order():
    made = [Sandbox.create(metadata={"run": "paging"}, timeout=60).sandbox_id for _ in range(5)]

    pages = Sandbox.list(query=SandboxQuery(metadata={"run": "paging"}), limit=2)
    seen: list[str] = []
    while pages.has_next:
        seen += [item.sandbox_id for item in pages.next_items()]

    assert seen == made[::-1]
    for sandbox_id in made:
        Sandbox.kill(sandbox_id)


def test_connect_finds_a_running_sandbox_and_its_files(sandbox):
    sandbox.files.write("kept", "yes")

    again = Sandbox.connect(sandbox.sandbox_id, timeout=300)

    assert again.files.read("kept") == "yes"


def test_timeouts_are_set_extended_and_kept(sandbox):
    sandbox.set_timeout(50)
    after_set = sandbox.get_info().end_at
    Sandbox.connect(sandbox.sandbox_id, timeout=20)
    after_short_connect = sandbox.get_info().end_at
    Sandbox.connect(sandbox.sandbox_id, timeout=500)
    after_long_connect = sandbox.get_info().end_at

    assert after_short_connect == after_set
    assert after_long_connect > after_set


def test_a_sandbox_ends_at_its_timeout():
    made = Sandbox.create(timeout=2)

    until = time.monotonic() + 15
    while made.is_running() and time.monotonic() < until:
        time.sleep(0.1)

    assert not made.is_running()
    with pytest.raises(NotFoundException):
        made.get_info()


def test_an_unknown_sandbox_and_template_are_not_found():
    with pytest.raises(NotFoundException):
        Sandbox.connect("i00000000000000000000")
    with pytest.raises(SandboxException, match="404"):
        Sandbox.create(template="nosuchtemplate")


def test_a_foreign_key_is_refused():
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "f" * 40)


def test_the_envd_token_is_enforced(sandbox, server):
    refused = httpx.get(
        f"{server.proxy_url}/files?path=/etc/passwd",
        headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"},
    )

    assert refused.status_code == 401
    assert refused.json()["code"] == 401


def test_envd_s_own_routes_are_refused_from_outside(sandbox, server):
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}

    for path in ("/init", "//init", "/%69nit", "/x/../init", "/freeze"):
        refused = httpx.post(server.proxy_url + path, headers=headers, json={})
        assert refused.status_code == 404, path


def test_git_works_through_the_sdk(sandbox):
    sandbox.commands.run(
        "git init -q repo && cd repo && git config user.email a@b && git config user.name n && "
        "echo x > f && git add f && git commit -qm first"
    )

    status = sandbox.git.status("/home/user/repo")

    assert re.match(r"ma(in|ster)", status.current_branch or "")


def test_python_and_node_are_in_the_base_template(sandbox):
    result = sandbox.commands.run(
        "python3 -c 'import sys; print(sys.version_info[0])'; node -e 'console.log(6*7)'; "
        "pip --version >/dev/null && npm --version >/dev/null && echo tools"
    )

    assert result.stdout == "3\n42\ntools\n"


def test_input_to_a_program_that_reads_no_more_does_not_end_the_daemon(sandbox):
    handle = sandbox.commands.run("exec 0<&-; echo closed; sleep 30", background=True, stdin=True)
    for stdout, _, _ in handle:
        if stdout:
            break
    with pytest.raises(SandboxException):
        sandbox.commands.send_stdin(handle.pid, "x" * 100_000)

    # A daemon that was started again would not know it.
    assert handle.pid in [process.pid for process in sandbox.commands.list()]


def test_a_watched_directory_tells_of_changes(sandbox):
    sandbox.files.make_dir("watched/below")
    watch = sandbox.files.watch_dir("watched", recursive=True, include_entry=True)
    sandbox.files.write("watched/below/file.txt", "one")
    sandbox.commands.run(
        "echo two >> watched/below/file.txt; mv watched/below/file.txt watched/moved"
    )
    events = []
    until = time.monotonic() + 10
    while "moved" not in [event.name for event in events] and time.monotonic() < until:
        events += watch.get_new_events()
        time.sleep(0.05)
    watch.stop()

    seen = [(event.name, event.type.value) for event in events]
    assert seen[:2] == [("below/file.txt", "create"), ("below/file.txt", "write")]
    assert ("below/file.txt", "rename") in seen
    assert ("moved", "create") in seen
    assert [event.entry.path for event in events if event.name == "moved" and event.entry] == [
        "/home/user/watched/moved"
    ]
