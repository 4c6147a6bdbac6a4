"""Only what Debian signed gets into the base template, asked over real HTTP."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from opene2b.core.errors import Internal
from opene2b.image import sources

from .conftest import need
from .web import Site, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def mirror() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a key pair of our own, `keyring.gpg` its public half."""
    folder = tmp_path_factory.mktemp("gnupg")
    folder.chmod(0o700)
    need("gpg", package="gpg")
    command = ["gpg", "--homedir", str(folder), "--batch", "--passphrase", ""]
    subprocess.run([*command, "--quick-gen-key", "archive", "ed25519"], check=True)
    exported = subprocess.run([*command, "--export"], check=True, capture_output=True)
    (folder / "keyring.gpg").write_bytes(exported.stdout)
    yield folder
    # gpg leaves an agent behind for each home directory.
    subprocess.run(["gpgconf", "--homedir", str(folder), "--kill", "all"], check=True)


def signed(signer: Path, text: str) -> bytes:
    command = ["gpg", "--homedir", str(signer), "--batch", "--clearsign", "--output", "-"]
    return subprocess.run(command, input=text.encode(), check=True, capture_output=True).stdout


def release(site: Site, path: str, body: bytes) -> None:
    site.answers[f"/{path}/InRelease"] = (200, {}, body)


async def test_a_mirror_is_taken_with_the_archives_it_has(mirror: Site, signer: Path) -> None:
    release(mirror, "debian/dists/bookworm", signed(signer, "Suite: bookworm\n"))
    release(mirror, "debian-security/dists/bookworm-security", signed(signer, "Suite: s\n"))

    found = await sources.find(
        mirror=f"{mirror.url}/debian",
        suite="bookworm",
        os_release={},
        keyrings=[signer / "keyring.gpg"],
    )

    assert [source.suite for source in found.sources] == ["bookworm", "bookworm-security"]


@pytest.mark.parametrize("forgery", ["unsigned", "changed", "empty"])
async def test_a_release_that_debian_did_not_sign_is_refused(
    mirror: Site, signer: Path, forgery: str
) -> None:
    body = {
        "unsigned": b"Suite: bookworm\n",
        "changed": signed(signer, "Suite: bookworm\n").replace(b"Suite", b"Sweet"),
        "empty": b"",
    }[forgery]
    release(mirror, "debian/dists/bookworm", body)

    with pytest.raises(Internal, match="no suite 'bookworm' signed by the Debian archive"):
        await sources.find(
            mirror=f"{mirror.url}/debian",
            suite="bookworm",
            os_release={},
            keyrings=[signer / "keyring.gpg"],
        )


async def test_other_vendors_on_a_debian_machine_are_left_out(
    mirror: Site, signer: Path, tmp_path: Path
) -> None:
    (tmp_path / "sources.list").write_text(
        f"deb {mirror.url}/debian bookworm main\ndeb {mirror.url}/vendor bookworm main\n"
    )
    release(mirror, "debian/dists/bookworm", signed(signer, "Suite: bookworm\n"))
    release(mirror, "vendor/dists/bookworm", b"Suite: bookworm\n")

    found = await sources.find(
        mirror=None,
        suite=None,
        os_release={"ID": "debian", "VERSION_CODENAME": "bookworm"},
        apt=tmp_path,
        keyrings=[signer / "keyring.gpg"],
    )

    assert [source.uri for source in found.sources] == [f"{mirror.url}/debian"]
