import os
import threading
from pathlib import Path

import pytest

from opene2b.linux import netlink, syscalls
from opene2b.linux.netlink import Rtnetlink


def test_an_attribute_is_padded_to_four_bytes_but_says_its_own_length():
    encoded = netlink.attribute(3, b"eth0\0")

    assert encoded == b"\x09\x00\x03\x00eth0\0\0\0\0"


@pytest.mark.skipif(os.geteuid() != 0, reason="making a network namespace needs root")
def test_a_pair_made_in_a_namespace_has_its_address_and_route():
    seen: dict[str, str] = {}

    def inside_a_namespace() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        link = Rtnetlink()
        link.add_veth("left", "right", fd)
        for name, address in (("left", "10.99.0.1"), ("right", "10.99.0.2")):
            link.add_address(name, address, 30)
            link.set_up(name)
        link.add_default_route("10.99.0.1")
        seen["devices"] = Path("/proc/thread-self/net/dev").read_text()
        seen["routes"] = Path("/proc/thread-self/net/route").read_text()
        seen["deleted"] = str(link.delete("left"))
        seen["again"] = str(link.delete("left"))
        link.close()
        os.close(fd)

    thread = threading.Thread(target=inside_a_namespace)
    thread.start()
    thread.join()

    assert "left:" in seen["devices"]
    assert "right:" in seen["devices"]
    # 10.99.0.1 as the kernel prints it: hexadecimal, in host byte order.
    assert "0100630A" in seen["routes"]
    assert seen["deleted"] == "True"
    assert seen["again"] == "False"
