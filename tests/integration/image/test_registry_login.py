"""Bearer tokens, redirects and plain http: what the packaged registry cannot be made to do."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from opene2b.core.errors import Internal, PermissionDenied, ServiceError
from opene2b.image import reference
from opene2b.image.registry import Registry

from .conftest import MANIFEST, sha256
from .web import Site, serving

CONFIG = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["A=1"]},
        "rootfs": {"diff_ids": []},
    }
).encode()
DOCUMENT = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "x", "digest": sha256(CONFIG), "size": len(CONFIG)},
        "layers": [],
    }
).encode()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as first:
        first.answers["/v2/a/b/manifests/latest"] = (200, {"Content-Type": MANIFEST}, DOCUMENT)
        first.answers[f"/v2/a/b/blobs/{sha256(CONFIG)}"] = (200, {}, CONFIG)
        yield first


@pytest.fixture
def storage() -> Iterator[Site]:
    with serving() as second:
        second.answers["/blob"] = (200, {}, CONFIG)
        yield second


def client(site: Site, **options: Any) -> Registry:
    name = f"{site.url.removeprefix('http://')}/a/b"
    return Registry(reference=reference.parse(name), machine="x86_64", **options)


async def test_a_token_is_fetched_with_the_password_and_used(site: Site) -> None:
    site.token = "tok"
    site.answers["/token"] = (200, {}, b'{"token": "tok"}')

    async with client(site, username="joe", password="secret") as registry:
        image = await registry.resolve()

    assert image.env_vars == {"A": "1"}
    asked = [(path, auth) for path, auth in site.seen if path.startswith("/token")]
    assert asked == [
        ("/token?fixed=1&service=s&scope=repository%3Aa%2Fb%3Apull", "Basic am9lOnNlY3JldA==")
    ]


async def test_a_token_is_asked_for_without_a_login_too(site: Site) -> None:
    site.token = "tok"
    site.answers["/token"] = (200, {}, b'{"access_token": "tok"}')

    async with client(site) as registry:
        image = await registry.resolve()

    assert image.digest == sha256(DOCUMENT)


async def test_a_refused_login_says_so(site: Site) -> None:
    site.token = "tok"
    site.answers["/token"] = (401, {}, b"")

    async with client(site, username="joe", password="secret") as registry:
        with pytest.raises(PermissionDenied, match="does not accept the login"):
            await registry.resolve()


async def test_the_token_stays_with_the_registry_when_blobs_are_elsewhere(
    site: Site, storage: Site
) -> None:
    site.token = "tok"
    site.answers["/token"] = (200, {}, b'{"token": "tok"}')
    path = f"/v2/a/b/blobs/{sha256(CONFIG)}"
    site.answers[path] = (307, {"Location": f"{storage.url}/blob"}, b"")

    async with client(site) as registry:
        image = await registry.resolve()

    assert image.env_vars == {"A": "1"}
    assert storage.seen == [("/blob", None)]


async def test_redirects_without_end_are_given_up(site: Site) -> None:
    path = f"/v2/a/b/blobs/{sha256(CONFIG)}"
    site.answers[path] = (302, {"Location": path}, b"")

    async with client(site) as registry:
        with pytest.raises(Internal, match="redirects without end"):
            await registry.resolve()


@pytest.mark.parametrize(
    "target", ["http://192.0.2.1/blob", "file:///etc/shadow", "ftp://127.0.0.1/x"]
)
async def test_a_redirect_to_what_is_not_safe_is_refused(site: Site, target: str) -> None:
    path = f"/v2/a/b/blobs/{sha256(CONFIG)}"
    site.answers[path] = (302, {"Location": target}, b"")

    async with client(site) as registry:
        with pytest.raises(PermissionDenied, match="only https is allowed"):
            await registry.resolve()


async def test_a_manifest_that_is_not_the_one_asked_for_is_refused(site: Site) -> None:
    other = "sha256:" + "1" * 64
    site.answers[f"/v2/a/b/manifests/{other}"] = (200, {"Content-Type": MANIFEST}, DOCUMENT)
    name = f"{site.url.removeprefix('http://')}/a/b@{other}"

    async with Registry(reference=reference.parse(name), machine="x86_64") as registry:
        with pytest.raises(Internal, match="another manifest"):
            await registry.resolve()


async def test_a_blob_longer_than_announced_is_cut_off(site: Site) -> None:
    site.answers[f"/v2/a/b/blobs/{sha256(CONFIG)}"] = (200, {}, CONFIG + b" " * 100)

    async with client(site) as registry:
        with pytest.raises(Internal, match="other bytes for blob"):
            await registry.resolve()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"schemaVersion": 1}', b"[" * 100_000])
async def test_a_manifest_that_is_none_is_refused(site: Site, body: bytes) -> None:
    site.answers["/v2/a/b/manifests/latest"] = (200, {"Content-Type": MANIFEST}, body)

    async with client(site) as registry:
        with pytest.raises(ServiceError):
            await registry.resolve()


async def test_a_rate_limit_is_told_from_a_refusal(site: Site) -> None:
    site.answers["/v2/a/b/manifests/latest"] = (429, {}, b"")

    async with client(site) as registry:
        with pytest.raises(Internal, match="no more downloads") as caught:
            await registry.resolve()
    assert caught.value.retryable
