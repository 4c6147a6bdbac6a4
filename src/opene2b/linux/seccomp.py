"""Seccomp filters, compiled by the system's libseccomp (a dependency of every OCI runtime).

The filter is compiled once per process and kept as BPF: a forked child only installs it.
Source: seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3).
"""

import ctypes
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field

from opene2b.core.errors import Internal

ACT_ALLOW = 0x7FFF0000
ACT_ERRNO = 0x00050000
FLTATR_ACT_BADARCH = 2
NR_UNKNOWN = -1

OPERATORS = {"ne": 1, "lt": 2, "le": 3, "eq": 4, "ge": 5, "gt": 6, "masked_eq": 7}


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on one argument of a system call."""

    argument: int
    operator: str
    """One of OPERATORS; `masked_eq` compares `argument & value` with `masked`."""
    value: int
    masked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    names: Sequence[str]
    """System calls; those that this machine's libseccomp or architecture lacks are passed over."""
    conditions: Sequence[Compare] = ()
    """All must hold."""
    errno: int | None = None
    """None: allow; else fail with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Rules over a default of failing with `default_errno`."""

    default_errno: int
    rules: Sequence[Rule] = field(default_factory=tuple)


class ArgumentCompare(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def library() -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as exc:
        raise Internal(
            "libseccomp.so.2 is missing: install the package libseccomp2", detail=str(exc)
        ) from exc
    loaded.seccomp_init.restype = ctypes.c_void_p
    loaded.seccomp_init.argtypes = [ctypes.c_uint32]
    loaded.seccomp_release.argtypes = [ctypes.c_void_p]
    loaded.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    loaded.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    loaded.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    loaded.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return loaded


def compile_profile(profile: Profile) -> bytes:
    """The profile as BPF for this machine's own architecture; calls of others fail like unknown ones."""
    lib = library()
    context = lib.seccomp_init(ACT_ERRNO | profile.default_errno)
    if not context:
        raise Internal("seccomp_init gave no filter")
    try:
        expect(
            lib.seccomp_attr_set(context, FLTATR_ACT_BADARCH, ACT_ERRNO | profile.default_errno),
            "seccomp_attr_set",
        )
        for rule in profile.rules:
            action = ACT_ALLOW if rule.errno is None else ACT_ERRNO | rule.errno
            compares = (ArgumentCompare * max(len(rule.conditions), 1))()
            for slot, condition in zip(compares, rule.conditions, strict=False):
                slot.arg = condition.argument
                slot.op = OPERATORS[condition.operator]
                slot.datum_a = condition.value
                slot.datum_b = condition.masked
            for name in rule.names:
                number = lib.seccomp_syscall_resolve_name(name.encode())
                # Negative numbers are calls of other architectures (or unknown): nothing to allow.
                if number < 0:
                    continue
                expect(
                    lib.seccomp_rule_add_array(
                        context, action, number, len(rule.conditions), compares
                    ),
                    f"seccomp_rule_add {name}",
                )
        with tempfile.TemporaryFile() as file:
            expect(lib.seccomp_export_bpf(context, file.fileno()), "seccomp_export_bpf")
            file.seek(0)
            return file.read()
    finally:
        lib.seccomp_release(context)


def expect(result: int, what: str) -> None:
    if result < 0:
        raise Internal(f"{what}: {os.strerror(-result)}")
