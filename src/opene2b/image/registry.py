"""A client of OCI registries: finds the image for this machine and streams its blobs, verified.

Source: OCI distribution spec 1.1, OCI image spec 1.1, Docker's registry token authentication.
"""

import contextlib
import hashlib
import json
import platform
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin

import httpx

from opene2b.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from opene2b.image.reference import DIGEST, Reference, is_loopback

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
DOCUMENT_LIMIT_BYTES = 4 << 20
"""Of manifests and configs; the spec asks registries to accept that much."""
LAYERS_LIMIT = 256
REDIRECTS_LIMIT = 6
TIMEOUT = httpx.Timeout(60.0, connect=15.0)
"""Of one wait for bytes, not of a whole download."""
CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    media_type: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image for one architecture."""

    digest: str
    """Of its manifest."""
    layers: tuple[Descriptor, ...]
    """Lowest first."""
    diff_ids: tuple[str, ...]
    """Digests of the same layers, uncompressed."""
    env_vars: Mapping[str, str]
    user: str
    """As the image says it: a name or number, perhaps with `:group`; empty: root."""
    workdir: str | None


@dataclass(slots=True)
class Registry:
    """Conversation about one repository; use it as `async with`.

    Args:
        insecure: Allow http, or https without a known certificate, to a host that is not this machine.
    """

    reference: Reference
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    insecure: bool = False
    machine: str = field(default_factory=platform.machine)
    _client: httpx.AsyncClient = field(init=False, repr=False)
    _base: str = field(init=False, default="")
    _authorization: str | None = field(init=False, default=None, repr=False)

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT, verify=not self.insecure, follow_redirects=False
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def resolve(self) -> Image:
        """Find the image for this machine and read what it says of itself.

        Raises:
            NotFound: no such image, or none for this machine's architecture.
            PermissionDenied: the registry wants other credentials.
            Internal: the registry cannot be reached or says something that cannot be.
        """
        architecture = ARCHITECTURES.get(self.machine)
        if architecture is None:
            raise InvalidArgument(f"no images are known for a machine of type {self.machine!r}")
        kind, body = await self._manifest(self.reference.version)
        document = parse(body)
        if kind in INDEX_TYPES or "manifests" in document:
            chosen = self._choose(document, architecture)
            kind, body = await self._manifest(chosen)
            document = parse(body)
        if document.get("schemaVersion") != 2 or not isinstance(document.get("config"), dict):
            raise InvalidArgument(
                f"{self.reference} has a manifest of an old or unknown kind ({kind}):"
                " push it again with a current tool"
            )
        config = parse(await self._small_blob(descriptor(document["config"])))
        found = str(config.get("architecture") or architecture)
        if found != architecture or config.get("os", "linux") != "linux":
            raise NotFound(
                f"{self.reference} is for {config.get('os', 'linux')}/{found},"
                f" this machine needs linux/{architecture}"
            )
        layers = tuple(descriptor(raw) for raw in listing(document.get("layers")))
        return image_of(digest_of(body), layers, config)

    async def blob(self, wanted: Descriptor) -> AsyncGenerator[bytes, None]:
        """Stream a blob. What was yielded may be used only after the iteration ended well.

        Raises Internal when the bytes are not those the digest stands for, or are too many.
        """
        sum_ = hashlib.new(wanted.digest.partition(":")[0])
        count = 0
        async with self._get(f"blobs/{wanted.digest}") as response:
            with self._translated():
                async for chunk in response.aiter_raw(1 << 18):
                    count += len(chunk)
                    if count > wanted.size_bytes:
                        break
                    sum_.update(chunk)
                    yield chunk
        if count != wanted.size_bytes or sum_.hexdigest() != wanted.digest.partition(":")[2]:
            raise Internal(
                f"{self.reference.registry} sent other bytes for blob {wanted.digest} than it"
                " stands for: try again, or push the image again",
                reason="registry_digest_mismatch",
                detail=f"{count} bytes of {wanted.size_bytes}",
                retryable=True,
            )

    def _choose(self, index: dict[str, Any], architecture: str) -> str:
        offers: list[str] = []
        for entry in listing(index.get("manifests")):
            target = entry.get("platform") or {}
            name = f"{target.get('os')}/{target.get('architecture')}"
            # arm64 has had one variant so far: v8, often not written.
            if name == f"linux/{architecture}" and target.get("variant") in {None, "", "v8"}:
                return descriptor(entry).digest
            # BuildKit lists its attestations as images for `unknown/unknown`.
            if name != "unknown/unknown":
                offers.append(name)
        raise NotFound(
            f"{self.reference} has nothing for linux/{architecture};"
            f" it has {', '.join(sorted(set(offers))) or 'no images at all'}"
        )

    async def _manifest(self, version: str) -> tuple[str, bytes]:
        accept = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))
        async with self._get(f"manifests/{version}", accept=accept) as response:
            with self._translated():
                body = await read_limited(response)
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            claimed = response.headers.get("docker-content-digest", "")
        expected = version if DIGEST.match(version) else claimed
        if DIGEST.match(expected) and digest_of(body, expected) != expected:
            raise Internal(
                f"{self.reference.registry} sent another manifest than {expected}",
                reason="registry_digest_mismatch",
                retryable=True,
            )
        return kind, body

    async def _small_blob(self, wanted: Descriptor) -> bytes:
        if wanted.size_bytes > DOCUMENT_LIMIT_BYTES:
            raise InvalidArgument(f"{self.reference} has a configuration of more than 4 MiB")
        return b"".join([chunk async for chunk in self.blob(wanted)])

    @contextlib.asynccontextmanager
    async def _get(self, path: str, *, accept: str = "*/*") -> AsyncIterator[httpx.Response]:
        """A successful response, unread: authorized where asked for, redirects followed."""
        url = f"{await self._address()}/v2/{self.reference.repository}/{path}"
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        for attempt in range(2):
            if self._authorization:
                headers["Authorization"] = self._authorization
            with self._translated():
                response = await self._send(url, headers)
            try:
                if response.status_code == 401 and attempt == 0:
                    challenge = response.headers.get("www-authenticate", "")
                    self._authorization = await self._authorize(challenge)
                    continue
                self._check(response, path)
                yield response
                return
            finally:
                await response.aclose()

    async def _send(self, url: str, headers: dict[str, str]) -> httpx.Response:
        origin = httpx.URL(url)
        for _ in range(REDIRECTS_LIMIT):
            self._allow(url)
            target = httpx.URL(url)
            sent = dict(headers)
            if (target.scheme, target.host, target.port) != (
                *(origin.scheme, origin.host, origin.port),
            ):
                # Blobs are often redirected to a storage service: our credentials are not for it.
                sent.pop("Authorization", None)
            response = await self._client.send(
                self._client.build_request("GET", target, headers=sent), stream=True
            )
            if response.status_code not in {301, 302, 303, 307, 308}:
                return response
            await response.aclose()
            url = urljoin(url, response.headers.get("location", ""))
        raise Internal(f"{self.reference.registry} redirects without end")

    def _allow(self, url: str) -> None:
        target = httpx.URL(url)
        if target.scheme == "https":
            return
        if target.scheme == "http" and (self.insecure or is_loopback(target.host)):
            return
        raise PermissionDenied(
            f"{self.reference.registry} leads to {target.scheme}://{target.host}: only https is"
            " allowed, except on this machine"
        )

    async def _address(self) -> str:
        """Where the registry is: https, or http where that is allowed and https does not answer."""
        if not self._base:
            host = self.reference.host
            self._base = f"https://{host}"
            if self.insecure or is_loopback(httpx.URL(self._base).host):
                try:
                    await self._client.get(f"{self._base}/v2/")
                except (httpx.ConnectError, httpx.ProtocolError, httpx.ReadError):
                    self._base = f"http://{host}"
                except httpx.HTTPError as exc:
                    raise self._unreachable(exc) from exc
        return self._base

    async def _authorize(self, challenge: str) -> str:
        """Answer a `WWW-Authenticate` with a value for `Authorization`."""
        kind, _, rest = challenge.partition(" ")
        words = dict(CHALLENGE.findall(rest))
        basic = None
        if self.username is not None:
            basic = httpx.BasicAuth(self.username, self.password or "")
        if kind.lower() == "basic":
            if basic is None:
                raise self._denied("asks for a user name and password")
            # httpx makes the header while it authorizes a request; none is sent here.
            request = next(basic.auth_flow(httpx.Request("GET", self._base)))
            return str(request.headers["Authorization"])
        if kind.lower() != "bearer" or "realm" not in words:
            raise self._denied("refuses, and asks for a kind of login that is not known here")
        self._allow(words["realm"])
        asked = {
            "service": words.get("service", ""),
            "scope": words.get("scope") or f"repository:{self.reference.repository}:pull",
        }
        # `params=` in a request would replace the query that the realm may already have.
        url = httpx.URL(words["realm"]).copy_merge_params({k: v for k, v in asked.items() if v})
        with self._translated():
            response = await self._client.get(url, auth=basic)
        if response.status_code in {400, 401, 403}:
            raise self._denied("does not accept the login")
        if response.status_code != 200:
            raise Internal(
                f"the login service of {self.reference.registry} answered {response.status_code}"
            )
        answer = parse(response.content)
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Internal(f"the login service of {self.reference.registry} gave no token")
        return f"Bearer {token}"

    def _check(self, response: httpx.Response, path: str) -> None:
        status = response.status_code
        if status == 200:
            return
        if status in {401, 403}:
            raise self._denied("does not let us read it")
        if status == 404:
            missing = "its part " + path if path.startswith("blobs/") else "it"
            raise NotFound(f"{self.reference}: {self.reference.registry} does not have {missing}")
        if status == 429:
            raise Internal(
                f"{self.reference.registry} allows no more downloads for now: set a login for it,"
                " or try later",
                reason="registry_rate_limit",
                retryable=True,
            )
        raise Internal(f"{self.reference.registry} answered {status}", reason="registry_status")

    def _denied(self, what: str) -> PermissionDenied:
        return PermissionDenied(
            f"{self.reference}: the registry {what}: set OPENE2B_BASE_IMAGE_USERNAME and"
            " OPENE2B_BASE_IMAGE_PASSWORD, and check the name of the image"
        )

    def _unreachable(self, exc: httpx.HTTPError) -> Internal | DeadlineExceeded:
        kind = DeadlineExceeded if isinstance(exc, httpx.TimeoutException) else Internal
        return kind(
            f"{self.reference.registry} cannot be reached: check its name and the network",
            reason="registry_unreachable",
            detail=repr(exc),
            retryable=True,
        )

    @contextlib.contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc
        except (httpx.InvalidURL, UnicodeError) as exc:
            raise Internal(f"{self.reference.registry} gave an address that is none") from exc


def image_of(digest: str, layers: tuple[Descriptor, ...], config: dict[str, Any]) -> Image:
    settings = config.get("config") or {}
    if not isinstance(settings, dict):
        raise InvalidArgument("the image's configuration is not an object")
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(layers) or len(layers) > LAYERS_LIMIT:
        raise InvalidArgument(
            f"the image lists {len(layers)} layers, which its configuration does not confirm"
        )
    pairs = (text.partition("=") for text in settings.get("Env") or () if isinstance(text, str))
    return Image(
        digest=digest,
        layers=layers,
        diff_ids=tuple(map(str, diff_ids)),
        env_vars={name: value for name, equals, value in pairs if name and equals},
        user=str(settings.get("User") or ""),
        workdir=str(settings["WorkingDir"]) if settings.get("WorkingDir") else None,
    )


def descriptor(raw: Any) -> Descriptor:
    try:
        found = Descriptor(
            media_type=str(raw.get("mediaType", "")),
            digest=str(raw["digest"]),
            size_bytes=int(raw["size"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise InvalidArgument("the image's manifest has a part without digest and size") from exc
    if not DIGEST.match(found.digest) or found.size_bytes < 0:
        raise InvalidArgument(f"the image's manifest has an impossible part: {found.digest!r}")
    return found


def listing(raw: Any) -> list[dict[str, Any]]:
    if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
        raise InvalidArgument("the image's manifest is not of a known form")
    return raw


def parse(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise Internal("the registry sent something that is not JSON") from exc
    if not isinstance(document, dict):
        raise Internal("the registry sent JSON that is not an object")
    return document


async def read_limited(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > DOCUMENT_LIMIT_BYTES:
            raise InvalidArgument("the image's manifest is larger than 4 MiB")
    return bytes(body)


def digest_of(body: bytes, like: str = "sha256:") -> str:
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
