"""What guest root may not do to the host, tried from inside a real sandbox."""

import json
import os
import signal
import subprocess
import time
from ipaddress import ip_network
from pathlib import Path

import pytest
import real_server
from e2b import (
    AuthenticationException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
)

from opene2b.node import firewall


@pytest.fixture(scope="module")
def sandbox(server):
    for name, value in server.client_env.items():
        os.environ[name] = value
    made = Sandbox.create(timeout=300)
    yield made
    made.kill()


def run(sandbox: Sandbox, command: str) -> str:
    return sandbox.commands.run(command, user="root").stdout


ENVD = "$(pgrep -xo envd)"


@pytest.mark.parametrize(
    "name", ["exe", "cwd", "root", "mem", "maps", "environ", "auxv", "fd", "map_files", "fdinfo"]
)
def test_guest_root_cannot_open_the_interpreter_through_proc(sandbox, name):
    said = run(
        sandbox,
        f"p=/proc/{ENVD}/{name}; if [ -d $p/ ]; then ls $p/; else head -c1 $p; fi 2>&1; true",
    )

    assert "denied" in said.lower(), said


def test_guest_root_cannot_write_to_the_interpreter(sandbox):
    said = run(sandbox, f"sh -c 'echo x > /proc/{ENVD}/exe' 2>&1; true")

    assert "denied" in said.lower()


def test_guest_root_cannot_trace_envd(sandbox):
    program = (
        "import ctypes, os, subprocess\n"
        "pid = int(subprocess.check_output(['pgrep', '-xo', 'envd']))\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(16, pid, 0, 0), os.strerror(ctypes.get_errno()))\n"
        "class V(ctypes.Structure): _fields_ = [('b', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
        "buffer = ctypes.create_string_buffer(8)\n"
        "local, remote = V(ctypes.addressof(buffer), 8), V(0x400000, 8)\n"
        "print(libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0),"
        " os.strerror(ctypes.get_errno()))\n"
    )
    sandbox.files.write("/tmp/trace.py", program)

    said = run(sandbox, "python3 /tmp/trace.py")

    assert said.splitlines() == ["-1 Operation not permitted"] * 2


def test_the_command_line_of_envd_names_no_file_of_the_host(sandbox):
    assert run(sandbox, f"tr '\\0' ' ' < /proc/{ENVD}/cmdline").strip() == "envd"


def test_a_started_command_has_no_descriptor_but_its_own(sandbox):
    said = run(sandbox, "ls /proc/self/fd | tr '\\n' ' '")

    # 3 is the directory that ls reads.
    assert said.split() == ["0", "1", "2", "3"]


def test_killing_envd_does_not_end_the_sandbox(sandbox):
    sandbox.commands.run("echo kept > /tmp/kept")
    before = run(sandbox, f"echo {ENVD}").strip()

    sandbox.commands.run(f"kill -9 {before}", user="root", background=True)
    until = time.monotonic() + 5
    after = before
    while after == before and time.monotonic() < until:
        try:
            after = run(sandbox, f"echo {ENVD}").strip()
        except Exception:
            time.sleep(0.05)

    assert after != before
    assert sandbox.files.read("/tmp/kept") == "kept\n"


def test_guest_root_sees_only_its_own_processes(sandbox):
    said = run(sandbox, "ps -eo comm= | sort -u")

    assert "python3" not in said
    assert len(said.split()) < 10


@pytest.mark.parametrize(
    "command",
    [
        "mount -t tmpfs none /mnt",
        "unshare -U true",
        "unshare -n true",
        "echo 1 > /proc/sys/kernel/sysrq",
        "echo c > /proc/sysrq-trigger",
        "cat /proc/kcore",
        "cat /proc/kallsyms | grep -q .",
        "dmesg",
        "mknod /tmp/disk b 8 0",
        "ip link set eth0 down",
        "ip addr add 10.203.9.9/32 dev eth0",
        "ip route replace default via 10.203.0.1",
        "date -s 2020-01-01",
        "sethostname=x; hostname changed",
        "echo 1 > /sys/fs/cgroup/memory/release_agent",
        "cat /dev/mem",
        "nsenter -t 1 -m true",
        "chroot /proc/1/root/../.. test -e /var/lib/opene2b",
        "swapoff -a && false",
        "modprobe dummy",
    ],
)
def test_guest_root_is_refused(sandbox, command):
    said = run(sandbox, f"( {command} ) >/dev/null 2>&1 && echo allowed || echo refused")

    assert said == "refused\n"


def test_what_guest_root_writes_belongs_to_no_account_of_the_host(sandbox, server):
    run(sandbox, "echo x > /root/mine; cp /bin/ls /root/ls; chmod 4755 /root/ls")
    home = Path(server.env["OPENE2B_HOME"])
    directory = home / "node/sandboxes" / sandbox.sandbox_id

    assert directory.stat().st_mode & 0o077 == 0
    for status in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if f"/opene2b/{sandbox.sandbox_id}" not in status.read_text():
                continue
            uids = (status.parent / "status").read_text().split("Uid:")[1].split()[:4]
        except OSError:
            continue
        assert all(int(uid) >= 0x70000000 for uid in uids)


def test_no_address_of_the_host_or_of_a_neighbour_is_reached(sandbox):
    neighbour = Sandbox.create(timeout=60)
    address = neighbour.commands.run("hostname -I").stdout.strip()
    gateway = run(sandbox, "ip route show default").split()[2]

    targets = [f"{gateway}:22", f"{gateway}:13000", f"{gateway}:13983", f"{address}:49983"]
    said = [
        run(
            sandbox,
            f"timeout 1 bash -c 'exec 3<>/dev/tcp/{target.replace(':', '/')}' 2>/dev/null "
            "&& echo open || echo closed",
        )
        for target in targets
    ]

    neighbour.kill()
    assert said == ["closed\n"] * 4


def test_root_inside_installs_a_package_binds_port_80_and_pings(sandbox):
    said = run(
        sandbox,
        "set -e; mkdir -p /tmp/pkg/DEBIAN /tmp/pkg/opt/thing; echo hi > /tmp/pkg/opt/thing/file; "
        "printf 'Package: thing\\nVersion: 1\\nArchitecture: all\\nMaintainer: n <n@n>\\n"
        "Description: d\\n' > /tmp/pkg/DEBIAN/control; dpkg-deb -b /tmp/pkg /tmp/thing.deb >/dev/null; "
        "apt-get install -y /tmp/thing.deb >/dev/null 2>&1; cat /opt/thing/file; "
        "ping -c1 -W2 127.0.0.1 >/dev/null && echo pong; "
        'python3 -c \'import socket; s = socket.socket(); s.bind(("", 80)); print("bound")\'',
    )

    assert said == "hi\npong\nbound\n"


def test_the_ordinary_user_binds_a_low_port_and_pings(sandbox):
    said = sandbox.commands.run(
        "ping -c1 -W2 127.0.0.1 >/dev/null && echo pong; sudo apt-get --version | head -c3; "
        'python3 -c \'import socket; s = socket.socket(); s.bind(("", 81)); print("bound")\''
    ).stdout

    assert said == "pong\naptbound\n"


def test_a_fork_bomb_stays_within_its_limit_and_the_sandbox_can_be_killed():
    made = Sandbox.create(timeout=60)
    made.commands.run("bomb() { bomb | bomb & }; bomb", background=True)
    other = Sandbox.create(timeout=60)

    assert other.commands.run("echo alive").stdout == "alive\n"
    assert made.kill() is True
    other.kill()


def test_memory_beyond_the_limit_is_refused_to_the_guest_alone():
    made = Sandbox.create(timeout=60)
    ended = made.commands.run(
        "python3 -c 'x = bytearray(3 << 30)' 2>/dev/null; echo exit $?", timeout=50
    )

    assert ended.stdout != "exit 0\n"
    assert made.commands.run("echo alive").stdout == "alive\n"
    made.kill()


def test_root_inside_cannot_touch_the_process_that_keeps_the_sandbox(sandbox):
    # Pid 1 runs under no seccomp filter: who could trace it could do what the filter forbids.
    sandbox.files.write(
        "/tmp/touch.py",
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.ptrace.argtypes = [ctypes.c_long] * 4\n"
        "for pid in sorted(int(name) for name in os.listdir('/proc') if name.isdigit()):\n"
        "    name = open(f'/proc/{pid}/comm').read().strip()\n"
        "    if name not in {'.init', 'envd'}:\n"
        "        continue\n"
        "    said = [name, 'traced' if libc.ptrace(16, pid, 0, 0) == 0 else 'refused']\n"
        "    for file in ('mem', 'maps', 'exe', 'root', 'fd', 'environ'):\n"
        "        try:\n"
        "            os.close(os.open(f'/proc/{pid}/{file}', os.O_RDONLY))\n"
        "            said.append(file)\n"
        "        except OSError:\n"
        "            pass\n"
        "    print(*said)\n",
    )

    assert run(sandbox, "python3 /tmp/touch.py") == ".init refused\nenvd refused\n"


def test_sysfs_shows_the_sandbox_s_own_network(sandbox):
    assert run(sandbox, "ls /sys/class/net; touch /sys/x 2>&1 | grep -c 'Read-only'") == (
        "eth0\nlo\n1\n"
    )


def test_the_sandbox_s_own_cgroup_is_the_root_of_what_it_sees(sandbox):
    groups = run(sandbox, "cat /proc/self/cgroup /proc/1/cgroup").splitlines()

    assert {line.split(":", 2)[2] for line in groups} == {"/"}
    assert run(sandbox, "readlink /proc/self/ns/cgroup").strip() != os.readlink(
        "/proc/self/ns/cgroup"
    )


def test_a_sandbox_that_nests_directories_deeply_ends_and_leaves_nothing():
    nested = Sandbox.create(timeout=60)
    nested.commands.run("perl -e 'for (1..3000) { mkdir q(d); chdir q(d) or die }'")
    killed = nested.kill()
    until = time.monotonic() + 20
    while left := [
        path for path in real_server.HOME.glob("node/*/*") if nested.sandbox_id in path.name
    ]:
        assert time.monotonic() < until, left
        time.sleep(0.1)

    assert killed is True


def test_killing_envd_again_and_again_costs_the_host_little():
    restless = Sandbox.create(timeout=60)
    loop = (
        "end=$((SECONDS + 6)); while [ $SECONDS -lt $end ]; do pkill -9 -x envd; sleep 0.01; done"
    )
    restless.commands.run(f"setsid bash -c '{loop}' >/dev/null 2>&1 &", user="root")
    time.sleep(6.5)
    log = (real_server.HOME / "logs/node.log").read_text()
    starts = log.count(f'"envd_ended", "sandbox_id": "{restless.sandbox_id}"')
    starts = starts or sum(
        "envd_ended" in line and restless.sandbox_id in line for line in log.splitlines()
    )
    restless.kill()

    assert 1 <= starts < 12


@pytest.mark.parametrize(
    ("path", "user", "error"),
    [
        ("/tmp", None, InvalidArgumentException),
        ("/proc/x", None, NotFoundException),
        ("/tmp/x", "nobodyx", AuthenticationException),
    ],
)
def test_a_refused_upload_has_its_own_error_and_not_that_of_a_lost_sandbox(
    sandbox, path, user, error
):
    with pytest.raises(error):
        sandbox.files.write(path, b"x" * (60 << 20), user=user)


@pytest.mark.skipif(
    not Path("/proc/net/nf_conntrack").exists(), reason="the kernel shows no tracked connections"
)
def test_the_next_sandbox_of_an_address_has_none_of_its_connections(server):
    tracked = Path("/proc/net/nf_conntrack")
    talker = Sandbox.create(timeout=60)
    address = talker.commands.run("hostname -I").stdout.strip()
    # Nobody answers there; what counts is that the kernel tracks the flow.
    talker.commands.run("echo x > /dev/udp/192.0.2.1/9")
    during = tracked.read_text()
    talker.kill()

    assert f"src={address} " in during
    assert f"src={address} " not in tracked.read_text()


def test_a_sandbox_without_internet_access_may_not_go_on_with_old_flows(server):
    rules = subprocess.run(
        [
            "nft",
            "list",
            "chain",
            "inet",
            firewall.table_name(ip_network(real_server.SUBNET)),
            "outward",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert rules.index("@offline drop") < rules.index("established")


def test_a_sandbox_without_internet_access_stays_so_when_the_agent_is_killed(server):
    cut_off = Sandbox.create(timeout=60, allow_internet_access=False)
    address = cut_off.commands.run("hostname -I").stdout.strip()
    table = firewall.table_name(ip_network(real_server.SUBNET))
    show = ["nft", "list", "set", "inet", table, "offline"]
    before = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    victim = json.loads((real_server.HOME / "run/children.json").read_text())["node"][0]
    os.kill(victim, signal.SIGKILL)
    until = time.monotonic() + 30
    log = real_server.HOME / "logs/node.log"
    opened = log.read_text().count('"agent_open"')
    while log.read_text().count('"agent_open"') == opened:
        assert time.monotonic() < until
        time.sleep(0.05)
    after = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    cut_off.kill()

    assert address in before
    assert address in after


def test_an_envd_that_was_started_again_is_known_to_the_next_agent(server):
    sandbox = Sandbox.create(timeout=60)
    sandbox.commands.run("pkill -9 -x envd; true", user="root", background=True)
    until = time.monotonic() + 20
    while True:
        try:
            sandbox.commands.run("true")
            break
        except Exception:
            assert time.monotonic() < until
            time.sleep(0.1)
    log = real_server.HOME / "logs/node.log"
    opened = log.read_text().count('"agent_open"')
    victim = json.loads((real_server.HOME / "run/children.json").read_text())["node"][0]
    os.kill(victim, signal.SIGKILL)
    while log.read_text().count('"agent_open"') == opened:
        assert time.monotonic() < until + 20
        time.sleep(0.05)
    time.sleep(3)
    refused = sum(
        "envd_start_refused" in line and sandbox.sandbox_id in line
        for line in log.read_text().splitlines()
    )
    answer = sandbox.commands.run("echo there").stdout
    sandbox.kill()

    assert answer == "there\n"
    assert refused <= 1
