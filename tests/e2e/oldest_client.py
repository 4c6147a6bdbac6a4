"""Run by test_oldest_clients with the oldest supported Python SDK: prints one line for each thing that worked."""

import e2b
from e2b import Sandbox

sandbox = Sandbox.create(timeout=120, metadata={"client": "oldest"})
print("create")
assert sandbox.commands.run("echo hello").stdout == "hello\n"
print("run")
sandbox.files.write("a/b.txt", "content")
assert sandbox.files.read("a/b.txt") == "content"
assert [entry.name for entry in sandbox.files.list("a")] == ["b.txt"]
print("files")
handle = sandbox.commands.run("cat", background=True, stdin=True)
sandbox.commands.send_stdin(handle.pid, "typed\n")
assert sandbox.commands.kill(handle.pid)
print("stdin")
seen = bytearray()
terminal = sandbox.pty.create(e2b.PtySize(rows=20, cols=60))
sandbox.pty.send_stdin(terminal.pid, b"echo $((40+2))x; exit\n")
terminal.wait(on_pty=seen.extend)
assert b"42x" in seen, seen
print("pty")
assert Sandbox.connect(sandbox.sandbox_id).is_running()
sandbox.set_timeout(60)
assert sandbox.get_info().sandbox_id == sandbox.sandbox_id
found = Sandbox.list(query=e2b.SandboxQuery(metadata={"client": "oldest"})).next_items()
assert sandbox.sandbox_id in [item.sandbox_id for item in found]
print("connect list info")
assert sandbox.kill()
assert not sandbox.is_running()
print("kill")
