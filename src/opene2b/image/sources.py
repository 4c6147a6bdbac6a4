"""Where the packages of a Debian system come from: the machine's own apt sources, or a mirror.

A machine often has repositories of other vendors configured. They must not end up in a sandbox, so
an entry counts only when it serves the wanted Debian suite and its release file carries a signature
of the Debian archive.
"""

import asyncio
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from opene2b.core.errors import Internal, InvalidArgument, Unsupported

DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SUITE = "bookworm"
COMPONENTS = ("main", "contrib", "non-free", "non-free-firmware")
KEYRINGS = tuple(
    Path("/usr/share/keyrings") / name
    for name in ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
)
SUITE = re.compile(r"[a-z][a-z0-9-]*\Z")
RELEASE_LIMIT_BYTES = 8 << 20
"""InRelease of a whole Debian suite is 0.15 MB."""
FETCH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None
    """What the machine's entry says; None: any trusted key."""

    def line(self, keyring: Path | None = None) -> str:
        options = f"[signed-by={keyring}] " if keyring else ""
        return f"deb {options}{self.uri} {self.suite} {' '.join(self.components)}"


def parse_os_release(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def parse_list(text: str) -> Iterator[Source]:
    """One-line format, `sources.list(5)`: `deb [option=value ...] uri suite component...`."""
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+\S+)*)\Z", line)
        if not match:
            continue
        options = dict(
            word.split("=", 1) for word in (match.group(1) or "").split() if word.count("=") == 1
        )
        yield Source(
            uri=match.group(2),
            suite=match.group(3),
            components=tuple(match.group(4).split()),
            signed_by=options.get("signed-by"),
        )


def parse_deb822(text: str) -> Iterator[Source]:
    """Stanzas of fields, `sources.list(5)`; a stanza is every URI with every suite."""
    for stanza in _stanzas(text):
        if stanza.get("enabled", "yes").lower() in {"no", "false", "0", "off", "disable"}:
            continue
        if "deb" not in stanza.get("types", "").split():
            continue
        signed_by = stanza.get("signed-by")
        for uri in stanza.get("uris", "").split():
            for suite in stanza.get("suites", "").split():
                yield Source(
                    uri=uri,
                    suite=suite,
                    components=tuple(stanza.get("components", "").split()),
                    signed_by=signed_by,
                )


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t":
            if last:
                fields[last] = f"{fields[last]}\n{line.strip()}".strip()
        else:
            name, _, value = line.partition(":")
            last = name.strip().lower()
            fields[last] = value.strip()


def of_machine(apt: Path) -> list[Source]:
    """Every enabled binary source below an `/etc/apt`, in apt's order."""
    found: list[Source] = []
    main = apt / "sources.list"
    if main.is_file():
        found += parse_list(main.read_text(errors="replace"))
    parts = apt / "sources.list.d"
    for path in sorted(parts.iterdir()) if parts.is_dir() else ():
        if path.suffix == ".list":
            found += parse_list(path.read_text(errors="replace"))
        elif path.suffix == ".sources":
            found += parse_deb822(path.read_text(errors="replace"))
    return found


def for_suite(sources: Iterable[Source], codename: str) -> list[Source]:
    """Those that can be Debian's archive for one release, without doubles."""
    wanted = {codename, f"{codename}-updates", f"{codename}-security"}
    kept: dict[tuple[str, str], Source] = {}
    for source in sources:
        url = urlsplit(source.uri)
        components = tuple(c for c in source.components if c in COMPONENTS)
        if (
            url.scheme not in {"http", "https"}
            or source.suite.rstrip("/") not in wanted
            or "main" not in components
            or (source.signed_by and "debian-archive" not in source.signed_by)
        ):
            continue
        kept.setdefault(
            (source.uri.rstrip("/"), source.suite), replace(source, components=components)
        )
    return list(kept.values())


def of_mirror(mirror: str, suite: str) -> list[Source]:
    """The three archives of a release on a mirror laid out like Debian's; not all mirrors have all."""
    url = urlsplit(mirror)
    if url.scheme not in {"http", "https"} or not url.netloc:
        raise InvalidArgument(f"the Debian mirror {mirror!r} is not an http or https address")
    base = mirror.rstrip("/")
    return [
        Source(uri=base, suite=suite, components=("main",)),
        Source(uri=base, suite=f"{suite}-updates", components=("main",)),
        Source(uri=f"{base}-security", suite=f"{suite}-security", components=("main",)),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    suite: str
    sources: tuple[Source, ...]
    keyring: Path


async def find(
    *,
    mirror: str | None,
    suite: str | None,
    os_release: Mapping[str, str],
    apt: Path = Path("/etc/apt"),
    keyrings: Iterable[Path] = KEYRINGS,
) -> Found:
    """Decide where to install Debian from, and check that it is Debian.

    Raises:
        InvalidArgument: a mirror or suite that cannot be one.
        Unsupported: the machine has not got Debian's keys, or no gpgv.
        Internal: the mirror does not answer, or does not serve the suite.
    """
    keyring = next((path for path in keyrings if path.is_file()), None)
    if keyring is None:
        raise Unsupported(
            "Debian's archive keys are not installed: apt-get install debian-archive-keyring"
        )
    on_debian = os_release.get("ID") == "debian"
    codename = suite or (os_release.get("VERSION_CODENAME") if on_debian else "") or DEFAULT_SUITE
    if not SUITE.match(codename):
        raise InvalidArgument(f"{codename!r} is not the name of a Debian suite")
    own = for_suite(of_machine(apt), codename) if on_debian and mirror is None else []
    served = any(source.suite == codename for source in own)
    candidates = own if served else of_mirror(mirror or DEFAULT_MIRROR, codename)
    async with httpx.AsyncClient(
        timeout=FETCH_TIMEOUT_S, follow_redirects=True, limits=httpx.Limits(max_connections=4)
    ) as client:
        genuine = await asyncio.gather(
            *(is_genuine(client, source, keyring) for source in candidates)
        )
    kept = tuple(source for source, yes in zip(candidates, genuine, strict=True) if yes)
    if not any(source.suite == codename for source in kept):
        tried = ", ".join(sorted({public(s.uri) for s in candidates if s.suite == codename}))
        raise Internal(
            f"{tried} has no suite {codename!r} signed by the Debian archive:"
            " set OPENE2B_BASE_MIRROR and OPENE2B_BASE_SUITE",
            reason="base_mirror_unusable",
        )
    return Found(suite=codename, sources=kept, keyring=keyring)


async def is_genuine(client: httpx.AsyncClient, source: Source, keyring: Path) -> bool:
    """Whether the source has a release file signed by a key of the keyring; False: it has not.

    Raises Internal when it cannot be asked: leaving security updates out without a word would be
    worse than not building.
    """
    url = f"{source.uri.rstrip('/')}/dists/{source.suite}/InRelease"
    release = bytearray()
    try:
        async with client.stream("GET", url) as response:
            if response.status_code in {403, 404, 410}:
                return False
            response.raise_for_status()
            async for chunk in response.aiter_bytes():
                release += chunk
                if len(release) > RELEASE_LIMIT_BYTES:
                    return False
    except httpx.HTTPError as exc:
        raise Internal(
            f"the Debian mirror {public(source.uri)} cannot be reached:"
            " check the network of this machine, or set OPENE2B_BASE_MIRROR",
            reason="base_mirror_unreachable",
            detail=f"{source.suite}: {exc!r}",
            retryable=True,
        ) from exc
    return await is_signed(bytes(release), keyring)


async def is_signed(release: bytes, keyring: Path) -> bool:
    """Whether one key of the keyring made a good signature, as apt judges it with several signers."""
    with tempfile.TemporaryDirectory(prefix="opene2b-gpgv-") as home:
        try:
            process = await asyncio.create_subprocess_exec(
                *("gpgv", "--homedir", home, "--keyring", str(keyring), "--status-fd", "1"),
                *("--output", "/dev/null", "-"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except FileNotFoundError as exc:
            raise Unsupported("gpgv is not installed: apt-get install gpgv") from exc
        status, _ = await process.communicate(release)
    return b"[GNUPG:] GOODSIG " in status


def public(uri: str) -> str:
    """The address without a user name or password."""
    url = urlsplit(uri)
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
