"""Forget the connections that the kernel tracks for an address, so that its next holder has none of them.

Source: linux/netfilter/nfnetlink_conntrack.h. A deletion with a filter (kernel >= 5.8) takes all that match; older kernels
do not run sandboxes (id-mapped mounts need 5.12).
"""

import os
import socket
import struct

from opene2b.linux.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, attribute

NETLINK_NETFILTER = 12
CTNETLINK_DELETE = 1 << 8 | 2
NLA_F_NESTED = 0x8000
CTA_TUPLE_ORIG = 1
CTA_FILTER = 25
CTA_TUPLE_IP = 1
CTA_IP_V4_SRC = 1
CTA_FILTER_ORIG_FLAGS = 1
CTA_FILTER_REPLY_FLAGS = 2
FILTER_BY_SOURCE = 1


def forget(address: str) -> None:
    """Delete what was begun from this IPv4 address, in the network namespace of the calling thread. Raises OSError."""
    source = attribute(CTA_IP_V4_SRC, socket.inet_aton(address))
    tuple_ = attribute(CTA_TUPLE_IP | NLA_F_NESTED, source)
    flags = attribute(CTA_FILTER_ORIG_FLAGS, struct.pack("=I", FILTER_BY_SOURCE))
    flags += attribute(CTA_FILTER_REPLY_FLAGS, struct.pack("=I", 0))
    body = struct.pack("=BBH", socket.AF_INET, 0, 0)
    body += attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, tuple_)
    body += attribute(CTA_FILTER | NLA_F_NESTED, flags)
    header = struct.pack(
        "=IHHII", 16 + len(body), CTNETLINK_DELETE, NLM_F_REQUEST | NLM_F_ACK, 1, 0
    )
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER) as netlink:
        netlink.bind((0, 0))
        netlink.send(header + body)
        answer = netlink.recv(65536)
    _, answered, _, _, _ = struct.unpack_from("=IHHII", answer)
    (code,) = struct.unpack_from("=i", answer, 16)
    if answered != NLMSG_ERROR or code:
        raise OSError(-code, f"conntrack: {os.strerror(-code)}")
