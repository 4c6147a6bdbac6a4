"""The real proxy on its real event loop, before a fake gateway whose sandboxes are servers of the test."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import http_wire
import pytest
import uvloop
from http_wire import Handler, Service

from opene2b.proxy import server
from opene2b.proxy.server import Proxy
from opene2b.testing import fake_gateway
from opene2b.testing.fake_gateway import FakeGateway

SANDBOX = "isandbox"


def pytest_asyncio_loop_factories(config, item):
    """Flow control and half-closed connections differ between event loops: test on the one that is used."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FakeGateway]:
    # Paths of unix sockets are short, so not below the test's own long name.
    async with fake_gateway.serve(tmp_path_factory.mktemp("g") / "g.sock") as made:
        yield made


@pytest.fixture
async def started(gateway: FakeGateway) -> AsyncIterator[tuple[Proxy, int]]:
    async with server.serve(gateway.path, "127.0.0.1", 0, drain_s=0.05) as made:
        yield made


@pytest.fixture
def proxy(started: tuple[Proxy, int]) -> Proxy:
    return started[0]


@pytest.fixture
def port(started: tuple[Proxy, int]) -> int:
    """Where the proxy listens."""
    return started[1]


@pytest.fixture
async def service() -> AsyncIterator[Callable[[Handler], Awaitable[Service]]]:
    """Starts servers; what went wrong in their handlers fails the test."""
    made: list[Service] = []

    async def start(handler: Handler) -> Service:
        one = Service(handler)
        await one.open()
        made.append(one)
        return one

    yield start

    for one in made:
        await one.shut()
    failures = [failure for one in made for failure in one.failures]
    assert failures == []


@pytest.fixture
def sandbox(gateway: FakeGateway, service: Callable[[Handler], Awaitable[Service]]):
    """Serves port 8000 (or others) of a sandbox named `isandbox` by a handler."""

    async def make(handler: Handler = http_wire.echo, *ports: int, **options) -> Service:
        one = await service(handler)
        gateway.add(SANDBOX, dict.fromkeys(ports or (8000,), one.port), **options)
        return one

    return make


@pytest.fixture
async def client(port: int) -> AsyncIterator[http_wire.Wire]:
    async with http_wire.connect(port) as wire:
        yield wire


@pytest.fixture(autouse=True)
def no_crash(caplog: pytest.LogCaptureFixture):
    """Whatever the proxy meets is answered; an exception that only the log saw is a bug."""
    yield
    records = [record for when in ("call", "teardown") for record in caplog.get_records(when)]
    crashes = [record for record in records if record.levelno >= logging.ERROR]

    assert [crash.getMessage() for crash in crashes] == []


@pytest.fixture
def until_still():
    """Wait until a figure grows no more, for half a second."""

    async def wait(figure: Callable[[], int]) -> None:
        seen, times = -1, 0
        async with asyncio.timeout(http_wire.LIMIT_S):
            while times < 5:
                await asyncio.sleep(0.1)
                seen, times = (seen, times + 1) if figure() == seen else (figure(), 0)

    return wait
