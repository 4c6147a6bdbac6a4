"""REST, by its requests and answers; behind it a real agent over a real socket."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlencode

import httpx
import pytest

from opene2b.core.errors import Internal
from opene2b.core.states import SandboxEvent

pytestmark = pytest.mark.slow


async def create(plane, **body):
    response = await plane.client.post("/v2/sandboxes", json={"templateID": "base", **body})
    assert response.status_code == 201, response.text
    return response.json()


async def detail(plane, sandbox_id):
    response = await plane.client.get(f"/sandboxes/{sandbox_id}")
    assert response.status_code == 200, response.text
    return response.json()


def left_s(found):
    return (datetime.fromisoformat(found["endAt"]) - datetime.now(UTC)).total_seconds()


def assert_error(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["code"] == status
    assert body["message"]
    return body


async def test_create_answers_what_every_client_needs(plane):
    made = await create(plane, metadata={"a": "1"})

    assert made["sandboxID"].startswith("i")
    assert made["sandboxID"].isalnum()
    assert made["clientID"]
    assert made["envdVersion"] == "0.6.13"
    assert len(made["envdAccessToken"]) == 64
    assert made["alias"] == "base"
    assert made["domain"] == "e2b.test"
    assert "trafficAccessToken" not in made


@pytest.mark.parametrize(("path", "default_s"), [("/v2/sandboxes", 300), ("/sandboxes", 15)])
async def test_both_creates_have_their_own_default_timeout(plane, path, default_s):
    response = await plane.client.post(path, json={"templateID": "base", "secure": True})
    found = await detail(plane, response.json()["sandboxID"])

    assert default_s - 5 < left_s(found) <= default_s


async def test_detail_says_what_create_said(plane):
    made = await create(
        plane,
        metadata={"user": "ä &=%"},
        timeout=100,
        allow_internet_access=False,
        network={"allowPublicTraffic": False, "maskRequestHost": "localhost:${PORT}"},
    )
    found = await detail(plane, made["sandboxID"])

    assert found["metadata"] == {"user": "ä &=%"}
    assert found["state"] == "running"
    assert found["allowInternetAccess"] is False
    assert found["network"] == {
        "allowPublicTraffic": False,
        "maskRequestHost": "localhost:${PORT}",
    }
    assert found["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
    assert found["envdAccessToken"] == made["envdAccessToken"]
    assert found["cpuCount"] == 2
    assert found["memoryMB"] == 1024
    assert len(made["trafficAccessToken"]) == 64


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"templateID": 1}, 400),
        ({"templateID": "nothing"}, 404),
        ({"templateID": "base:v9"}, 404),
        ({"templateID": "nobody/base"}, 404),
        ({"templateID": "a b"}, 400),
        ({"templateID": ""}, 400),
        ({"templateID": "base", "timeout": 0}, 400),
        ({"templateID": "base", "timeout": -1}, 400),
        ({"templateID": "base", "timeout": 3601}, 400),
        ({"templateID": "base", "timeout": 10**30}, 400),
        ({"templateID": "base", "timeout": "60"}, 400),
        ({"templateID": "base", "timeout": 1.5}, 400),
        ({"templateID": "base", "timeout": True}, 400),
        ({"templateID": "base", "metadata": {"a": 1}}, 400),
        ({"templateID": "base", "metadata": ["a"]}, 400),
        ({"templateID": "base", "metadata": {"a": "\0"}}, 400),
        ({"templateID": "base", "envVars": {"A=B": "1"}}, 400),
        ({"templateID": "base", "envVars": {"": "1"}}, 400),
        ({"templateID": "base", "envVars": {"A": "x\0"}}, 400),
        ({"templateID": "base", "envVars": {"A": "x" * 200_000}}, 400),
        ({"templateID": "base", "envVars": {f"A{n}": "x" * 100_000 for n in range(11)}}, 400),
        ({"templateID": "base", "network": {"denyOut": ["example.com"]}}, 400),
        ({"templateID": "base", "autoPauseMemory": False}, 400),
        (
            {
                "templateID": "base",
                "autoPause": True,
                "autoPauseMemory": False,
                "autoResume": {"enabled": True},
            },
            400,
        ),
        ({"templateID": "base", "volumeMounts": [{"name": "a", "path": "/a"}]}, 501),
        ({"templateID": "base", "network": {"allowOut": ["1.1.1.1"]}}, 501),
        ({"templateID": "unbuilt"}, 503),
    ],
)
async def test_what_cannot_be_made_is_refused_before_anything_is_made(plane, body, status):
    response = await plane.client.post("/v2/sandboxes", json=body)

    assert_error(response, status)
    assert plane.agent.statuses() == []
    assert await plane.store.all_sandboxes() == []


async def test_a_template_that_is_not_built_says_so_and_is_not_asked_for_again(plane):
    response = await plane.client.post("/v2/sandboxes", json={"templateID": "unbuilt"})

    assert assert_error(response, 503)["error_code"] == "template_not_ready"
    assert "built" in response.json()["message"]
    assert response.headers["should-retry"] == "false"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"templateID": "\xff"}',
        b'{"templateID": "base"} x',
        b"[" * 5000,
    ],
)
async def test_what_is_no_json_object_is_refused(plane, raw):
    response = await plane.client.post("/v2/sandboxes", content=raw)

    assert assert_error(response, 400)["message"].startswith("validation error")


async def test_a_huge_body_is_refused(plane):
    response = await plane.client.post("/v2/sandboxes", content=b"x" * ((16 << 20) + 1))

    assert_error(response, 413)


async def test_a_huge_body_of_unknown_length_is_refused(plane):
    async def pieces():
        for _ in range(17):
            yield b"x" * (1 << 20)

    response = await plane.client.post("/v2/sandboxes", content=pieces())

    assert_error(response, 413)


async def test_connect_only_ever_extends(plane):
    made = await create(plane, timeout=600)
    sandbox_id = made["sandboxID"]
    shorter = await plane.client.post(f"/v2/sandboxes/{sandbox_id}/connect", json={"timeout": 10})
    kept = left_s(await detail(plane, sandbox_id))
    longer = await plane.client.post(f"/sandboxes/{sandbox_id}/connect", json={"timeout": 1200})
    extended = left_s(await detail(plane, sandbox_id))

    assert shorter.status_code == longer.status_code == 200
    assert shorter.json()["envdAccessToken"] == made["envdAccessToken"]
    assert 590 < kept <= 600
    assert 1190 < extended <= 1200


@pytest.mark.parametrize("raw", [b"", b"{}"])
async def test_connect_needs_no_body(plane, raw):
    made = await create(plane, timeout=10)
    response = await plane.client.post(f"/v2/sandboxes/{made['sandboxID']}/connect", content=raw)

    assert response.status_code == 200
    assert 290 < left_s(await detail(plane, made["sandboxID"])) <= 300


async def test_timeout_overwrites_and_is_capped_by_the_longest_life(plane):
    made = await create(plane, timeout=600)
    path = f"/sandboxes/{made['sandboxID']}"
    shorter = await plane.client.post(f"{path}/timeout", json={"timeout": 20})
    shortened = left_s(await detail(plane, made["sandboxID"]))
    longer = await plane.client.post(f"{path}/timeout", json={"timeout": 2**31 - 1})
    capped = left_s(await detail(plane, made["sandboxID"]))

    assert shorter.status_code == longer.status_code == 204
    assert 10 < shortened <= 20
    assert 3500 < capped <= 3600


async def test_refreshes_extend_by_at_least_fifteen_seconds(plane):
    made = await create(plane, timeout=5)
    path = f"/sandboxes/{made['sandboxID']}/refreshes"
    response = await plane.client.post(path, json={"duration": 1})
    extended = left_s(await detail(plane, made["sandboxID"]))
    refused = await plane.client.post(path, json={"duration": 3601})

    assert response.status_code == 204
    assert 10 < extended <= 15
    assert_error(refused, 400)


async def test_a_timeout_of_zero_ends_it_at_once(plane):
    made = await create(plane)
    await plane.client.post(f"/sandboxes/{made['sandboxID']}/timeout", json={"timeout": 0})
    async with asyncio.timeout(5):
        while plane.agent.statuses():
            await asyncio.sleep(0.01)

    assert_error(await plane.client.get(f"/sandboxes/{made['sandboxID']}"), 404)


async def test_kill_ends_it_and_the_second_kill_finds_nothing(plane):
    made = await create(plane)
    first = await plane.client.delete(f"/sandboxes/{made['sandboxID']}")
    second = await plane.client.delete(f"/sandboxes/{made['sandboxID']}")

    assert first.status_code == 204
    assert_error(second, 404)
    assert plane.agent.statuses() == []


async def test_the_old_form_of_an_id_is_understood(plane):
    made = await create(plane)

    assert (await plane.client.get(f"/sandboxes/{made['sandboxID']}-abc")).status_code == 200


@pytest.mark.parametrize("sandbox_id", ["UPPER", "a_b", "%2e%2e", "a%2Fb", "%ff", "é"])
async def test_what_is_no_sandbox_id_is_refused(plane, sandbox_id):
    assert_error(await plane.client.get(f"/sandboxes/{sandbox_id}"), 400)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/connect", {"timeout": 10}),
        ("POST", "/timeout", {"timeout": 10}),
        ("POST", "/refreshes", {"duration": 10}),
    ],
)
async def test_another_teams_sandbox_is_not_there(plane, method, path, body):
    made = await create(plane)
    key = await plane.key_of_another_team()
    path = f"/sandboxes/{made['sandboxID']}{path}"
    response = await plane.client.request(method, path, json=body, headers={"X-API-Key": key})
    unknown = await plane.client.request(
        method, path.replace(made["sandboxID"], "inothing"), json=body
    )

    assert assert_error(response, 404)["message"] == (
        f"Sandbox \"{made['sandboxID']}\" doesn't exist or you don't have access to it"
    )
    assert_error(unknown, 404)
    assert await detail(plane, made["sandboxID"])


# lists


async def test_pages_go_on_until_the_header_is_absent(plane):
    made = [(await create(plane))["sandboxID"] for _ in range(3)]
    seen, token, pages = [], None, 0
    while True:
        query = {"limit": 2, **({"nextToken": token} if token else {})}
        response = await plane.client.get("/v2/sandboxes", params=query)
        seen += [row["sandboxID"] for row in response.json()]
        pages += 1
        token = response.headers.get("x-next-token")
        if token is None:
            break

    assert seen == made[::-1]
    assert pages == 2
    assert response.headers["x-total-running"] == "3"


async def test_order_start_and_template_choose(plane):
    first = (await create(plane))["sandboxID"]
    second = (await create(plane))["sandboxID"]
    started = (await detail(plane, second))["startedAt"]

    async def ids(**query):
        response = await plane.client.get("/v2/sandboxes", params=query)
        assert response.status_code == 200, response.text
        return [row["sandboxID"] for row in response.json()]

    assert await ids(order="asc") == [first, second]
    assert await ids(startedAfter=started) == [second]
    assert await ids(template="base") == [second, first]
    assert await ids(template="nothing") == []
    assert await ids(state="paused") == []
    assert await ids(state="running,paused") == [second, first]


async def test_metadata_is_encoded_twice_and_all_pairs_must_match(plane):
    wanted = {"who": "a b&c=d/é%", "kind": "x"}
    chosen = (await create(plane, metadata={**wanted, "more": "1"}))["sandboxID"]
    await create(plane, metadata={"who": "a b&c=d/é%"})
    encoded = urlencode({quote(name): quote(value) for name, value in wanted.items()})
    for path in ("/v2/sandboxes", "/sandboxes"):
        response = await plane.client.get(path, params={"metadata": encoded})

        assert [row["sandboxID"] for row in response.json()] == [chosen]


@pytest.mark.parametrize(
    "query",
    [
        "state=asleep",
        "state=",
        "order=up",
        "limit=0",
        "limit=101",
        "limit=x",
        "nextToken=x",
        "startedAfter=yesterday",
        "startedAfter=2026-01-01T00:00:00",
        "metadata=novalue",
        "template=a%20b",
    ],
)
async def test_a_wrong_query_is_refused(plane, query):
    assert_error(await plane.client.get(f"/v2/sandboxes?{query}"), 400)


async def test_another_teams_sandboxes_are_not_listed(plane):
    await create(plane)
    headers = {"X-API-Key": await plane.key_of_another_team()}
    response = await plane.client.get("/v2/sandboxes", headers=headers)

    assert response.json() == []
    assert response.headers["x-total-running"] == "0"


# idempotency


async def test_the_same_key_gives_the_same_sandbox(plane):
    async def post(order):
        return await plane.client.post(
            "/v2/sandboxes",
            content=json.dumps(dict(order)),
            headers={"Idempotency-Key": "abc-1"},
        )

    pairs = [("templateID", "base"), ("metadata", {"a": "1", "b": "2"})]
    first, second = await asyncio.gather(post(pairs), post(pairs[::-1]))
    third = await post(pairs)

    assert first.status_code == second.status_code == third.status_code == 201
    assert first.json() == second.json() == third.json()
    assert len(plane.agent.statuses()) == 1


async def test_the_same_key_with_another_body_is_refused(plane):
    headers = {"Idempotency-Key": "abc-1"}
    await plane.client.post("/v2/sandboxes", json={"templateID": "base"}, headers=headers)
    response = await plane.client.post(
        "/v2/sandboxes", json={"templateID": "base", "timeout": 9}, headers=headers
    )

    assert assert_error(response, 422)["error_code"] == "idempotency_request_mismatch"
    assert response.headers["should-retry"] == "false"


async def test_keys_of_two_teams_do_not_meet(plane):
    other = await plane.key_of_another_team()
    body, name = {"templateID": "base"}, {"Idempotency-Key": "same"}
    mine = await plane.client.post("/v2/sandboxes", json=body, headers=name)
    theirs = await plane.client.post(
        "/v2/sandboxes", json=body, headers={**name, "X-API-Key": other}
    )

    assert mine.json()["sandboxID"] != theirs.json()["sandboxID"]


async def test_a_create_that_failed_can_be_tried_again_under_its_key(plane):
    headers = {"Idempotency-Key": "abc-2"}
    body = {"templateID": "base"}
    plane.runtime.behavior.start_error = RuntimeError("on purpose")
    failed = await plane.client.post("/v2/sandboxes", json=body, headers=headers)
    plane.runtime.behavior.start_error = None
    made = await plane.client.post("/v2/sandboxes", json=body, headers=headers)

    assert_error(failed, 500)
    assert "on purpose" not in failed.text
    assert made.status_code == 201


async def test_a_key_whose_sandbox_has_ended_is_not_used_again(plane):
    headers = {"Idempotency-Key": "abc-3"}
    body = {"templateID": "base"}
    made = await plane.client.post("/v2/sandboxes", json=body, headers=headers)
    await plane.client.delete(f"/sandboxes/{made.json()['sandboxID']}")
    response = await plane.client.post("/v2/sandboxes", json=body, headers=headers)

    assert assert_error(response, 409)["error_code"] == "idempotency_outcome_unknown"


@pytest.mark.parametrize("key", ["", "A", "a b", "a" * 256, "ä"])
async def test_a_wrong_idempotency_key_is_refused(plane, key):
    response = await plane.client.post(
        "/v2/sandboxes",
        json={"templateID": "base"},
        headers=[(b"Idempotency-Key", key.encode())],
    )

    assert_error(response, 400)


# limits


async def test_a_team_at_its_limit_is_told_so_and_not_to_ask_again(plane):
    for _ in range(5):
        await create(plane)
    response = await plane.client.post("/v2/sandboxes", json={"templateID": "base"})

    assert (
        "maximum number of concurrent E2B sandboxes (5)" in assert_error(response, 429)["message"]
    )
    assert response.headers["should-retry"] == "false"


async def test_a_full_node_says_so(plane):
    other = {"X-API-Key": await plane.key_of_another_team()}
    for _ in range(5):
        await create(plane)
    body = {"templateID": "base"}
    last = await plane.client.post("/v2/sandboxes", json=body, headers=other)
    response = await plane.client.post("/v2/sandboxes", json=body, headers=other)

    assert last.status_code == 201
    assert assert_error(response, 503)["error_code"] == "sandbox_capacity_unavailable"
    assert len(await plane.store.all_sandboxes()) == 6


async def test_requests_at_once_cannot_pass_the_limit_of_the_team(plane):
    responses = await asyncio.gather(
        *(plane.client.post("/v2/sandboxes", json={"templateID": "base"}) for _ in range(12))
    )

    assert sorted(response.status_code for response in responses) == [201] * 5 + [429] * 7


# keys and the rest


@pytest.mark.parametrize("key", [None, "", "e2b_" + "0" * 40, "x" * 10_000])
async def test_no_key_or_a_foreign_one_is_refused(plane, key):
    async with httpx.AsyncClient(
        transport=plane.client._transport, base_url="http://api.test"
    ) as stranger:
        headers = {} if key is None else {"X-API-Key": key}
        for method, path in (
            ("GET", "/v2/sandboxes"),
            ("POST", "/v2/sandboxes"),
            ("GET", "/templates"),
        ):
            response = await stranger.request(method, path, headers=headers)

            assert_error(response, 401)


async def test_templates_are_shown_with_everything_that_clients_read(plane):
    rows = (await plane.client.get("/templates")).json()
    base = next(row for row in rows if row["aliases"] == ["base"])
    page = await plane.client.get("/v2/templates", params={"limit": 1})
    rest = await plane.client.get(
        "/v2/templates", params={"limit": 1, "nextToken": page.headers["x-next-token"]}
    )
    one = (await plane.client.get(f"/templates/{base['templateID']}")).json()
    alias = await plane.client.get("/templates/aliases/e2b%2Fbase")

    assert base["names"] == ["e2b/base"]
    assert base["isDefault"] is True
    assert base["createdBy"] is None
    assert {row["templateID"] for row in page.json() + rest.json()} == {
        row["templateID"] for row in rows
    }
    assert "x-next-token" not in rest.headers
    assert one["builds"][0]["buildID"] == base["buildID"]
    assert alias.json() == {"templateID": base["templateID"], "public": True}
    assert_error(await plane.client.get("/templates/aliases/free"), 404)
    assert_error(await plane.client.get("/templates?teamID=other"), 403)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/sandboxes/iabc/pause", 404),
        ("POST", "/sandboxes/iabc/fork", 501),
        ("POST", "/v3/templates", 501),
        ("GET", "/volumes", 501),
        ("PUT", "/v2/sandboxes", 405),
        ("GET", "/nothing", 404),
        ("GET", "/sandboxes/", 404),
        ("GET", "/", 404),
    ],
)
async def test_what_is_not_there_says_so_in_json(plane, method, path, status):
    response = await plane.client.request(method, path)

    assert_error(response, status)
    assert ("allow" in response.headers) == (status == 405)


async def test_health_is_open_and_tells_when_the_server_stops(plane):
    before = await plane.client.get("/health", headers={"X-API-Key": ""})
    plane.parts.draining.set()
    after = await plane.client.get("/health")

    assert before.status_code == 200
    assert_error(after, 503)


async def test_pages_of_every_origin_may_ask(plane):
    preflight = await plane.client.options(
        "/v2/sandboxes",
        headers={
            "Origin": "https://example.test",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key,content-type,idempotency-key,lang",
        },
    )
    response = await plane.client.get(
        "/v2/sandboxes?limit=0", headers={"Origin": "https://example.test"}
    )

    assert preflight.status_code == 200
    assert "x-api-key" in preflight.headers["access-control-allow-headers"].lower()
    assert response.headers["access-control-allow-origin"] == "*"
    assert "X-Next-Token" in response.headers["access-control-expose-headers"]


async def test_the_document_describes_every_endpoint_and_the_page_loads(plane):
    document = (await plane.client.get("/openapi.json")).json()
    page = await plane.client.get("/docs")
    bundle = await plane.client.get("/docs/swagger-ui-bundle.js")

    assert document["openapi"].startswith("3.0")
    assert set(document["paths"]["/v2/sandboxes"]) == {"get", "post"}
    assert "Sandbox" in document["components"]["schemas"]
    assert '"null"' not in json.dumps(document["components"])
    assert page.headers["content-type"].startswith("text/html")
    assert len(bundle.content) > 500_000
    assert_error(await plane.client.get("/docs/..%2F..%2Fetc%2Fpasswd"), 404)


async def test_the_end_of_a_sandbox_is_noticed(plane):
    plane.runtime.behavior.dies_after_s = 0.2
    made = await create(plane)
    async with asyncio.timeout(10):
        while (await plane.client.get(f"/sandboxes/{made['sandboxID']}")).status_code == 200:
            await asyncio.sleep(0.02)
        # Its record goes last.
        while await plane.store.all_sandboxes():
            await asyncio.sleep(0.02)

    assert plane.agent.statuses() == []


async def test_a_sandbox_ends_when_its_time_is_up(plane):
    made = await create(plane, timeout=1)
    until = datetime.now(UTC) + timedelta(seconds=10)
    while plane.agent.statuses() and datetime.now(UTC) < until:
        await asyncio.sleep(0.02)

    assert plane.agent.statuses() == []
    assert_error(await plane.client.get(f"/sandboxes/{made['sandboxID']}"), 404)


# pause and resume


async def test_a_paused_sandbox_is_told_of_listed_and_resumed(plane):
    made = await create(plane, timeout=60)
    path = f"/sandboxes/{made['sandboxID']}"
    paused = await plane.client.post(f"{path}/pause")
    found = await detail(plane, made["sandboxID"])
    lists = [
        [row["sandboxID"] for row in (await plane.client.get(url)).json()]
        for url in ("/v2/sandboxes?state=paused", "/v2/sandboxes?state=running", "/sandboxes")
    ]
    resumed = await plane.client.post(f"/v2{path}/connect", json={"timeout": 90})
    again = await plane.client.post(f"/v2{path}/connect", json={"timeout": 30})
    after = await detail(plane, made["sandboxID"])

    assert (paused.status_code, paused.content) == (204, b"")
    assert found["state"] == "paused"
    assert found["pauseMode"] == "full"
    assert abs(left_s(found)) < 5
    assert lists == [[made["sandboxID"]], [], []]
    assert (resumed.status_code, again.status_code) == (201, 200)
    assert resumed.json()["envdAccessToken"] == made["envdAccessToken"]
    assert after["state"] == "running"
    assert 80 < left_s(after) <= 90
    assert "pauseMode" not in after


async def test_only_what_runs_is_paused_and_only_what_is_paused_resumed(plane):
    made = await create(plane)
    path = f"/sandboxes/{made['sandboxID']}"
    early = await plane.client.post(f"{path}/resume", json={"timeout": 60})
    await plane.client.post(f"{path}/pause", json={})
    second = await plane.client.post(f"{path}/pause", json={"memory": True})
    timeouts = [
        await plane.client.post(f"{path}/timeout", json={"timeout": 60}),
        await plane.client.post(f"{path}/refreshes", json={"duration": 60}),
    ]
    late = await plane.client.post(f"{path}/resume", json={"timeout": 60})

    assert "already running" in assert_error(early, 409)["message"]
    assert "already paused" in assert_error(second, 409)["message"]
    for answer in timeouts:
        assert_error(answer, 404)
    assert late.status_code == 201


async def test_a_paused_sandbox_is_killed(plane):
    made = await create(plane)
    path = f"/sandboxes/{made['sandboxID']}"
    await plane.client.post(f"{path}/pause")
    killed = [(await plane.client.delete(path)).status_code for _ in range(2)]

    assert killed == [204, 404]


async def test_many_connects_resume_once(plane):
    made = await create(plane)
    path = f"/sandboxes/{made['sandboxID']}"
    await plane.client.post(f"{path}/pause")
    answers = await asyncio.gather(
        *(plane.client.post(f"/v2{path}/connect", json={"timeout": 60}) for _ in range(30))
    )

    assert {answer.status_code for answer in answers} <= {200, 201}
    assert (await detail(plane, made["sandboxID"]))["state"] == "running"


async def test_a_sandbox_is_paused_when_its_time_is_over_if_it_asked_for_that(plane):
    made = await create(plane, timeout=1, autoPause=True)
    until = asyncio.get_running_loop().time() + 20
    while (found := await detail(plane, made["sandboxID"]))["state"] != "paused":
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.05)

    assert found["lifecycle"] == {"autoResume": False, "onTimeout": "pause"}


async def test_pause_and_connect_at_once_end_in_one_of_both(plane):
    made = await create(plane)
    path = f"/sandboxes/{made['sandboxID']}"
    for _ in range(5):
        answers = await asyncio.gather(
            plane.client.post(f"{path}/pause"),
            plane.client.post(f"/v2{path}/connect", json={"timeout": 60}),
            plane.client.post(f"{path}/pause"),
        )

        assert {answer.status_code for answer in answers} <= {200, 201, 204, 409}
    await plane.client.post(f"/v2{path}/connect", json={"timeout": 60})

    assert (await detail(plane, made["sandboxID"]))["state"] == "running"


async def test_a_team_at_its_limit_cannot_resume(plane):
    first = await create(plane)
    path = f"/sandboxes/{first['sandboxID']}"
    await plane.client.post(f"{path}/pause")
    others = [await create(plane) for _ in range(plane.scheduler.settings.team_max_sandboxes)]
    refused = await plane.client.post(f"/v2{path}/connect", json={"timeout": 60})
    await plane.client.delete(f"/sandboxes/{others[0]['sandboxID']}")
    resumed = await plane.client.post(f"/v2{path}/connect", json={"timeout": 60})

    assert "maximum number" in assert_error(refused, 429)["message"]
    assert resumed.status_code == 201


async def test_a_sandbox_paused_without_its_memory_starts_again_from_its_disk(plane):
    made = await create(plane)
    path = f"/sandboxes/{made['sandboxID']}"
    [live] = plane.agent.live.values()
    before = live.entry.handle["pid"]
    paused = await plane.client.post(f"{path}/pause", json={"memory": False})
    found = await detail(plane, made["sandboxID"])
    places = plane.agent.places.in_use
    resumed = await plane.client.post(f"/v2{path}/connect", json={"timeout": 60})

    assert paused.status_code == 204
    assert (found["state"], found["pauseMode"]) == ("paused", "filesystem")
    assert places == 0
    assert resumed.status_code == 201
    assert resumed.json()["envdAccessToken"] == made["envdAccessToken"]
    assert live.entry.handle["pid"] != before


async def test_memory_may_be_left_behind_when_connecting(plane):
    made = await create(plane)
    path = f"/sandboxes/{made['sandboxID']}"
    [live] = plane.agent.live.values()
    before = live.entry.handle["pid"]
    await plane.client.post(f"{path}/pause")
    resumed = await plane.client.post(f"/v2{path}/connect", json={"timeout": 60, "memory": False})

    assert resumed.status_code == 201
    assert live.entry.handle["pid"] != before


async def test_a_stored_sandbox_that_cannot_start_stays_paused_and_whole(plane):
    made = await create(plane)
    path = f"/sandboxes/{made['sandboxID']}"
    await plane.client.post(f"{path}/pause", json={"memory": False})
    plane.runtime.behavior.start_error = OSError("no")
    refused = await plane.client.post(f"/v2{path}/connect", json={"timeout": 60})
    found = await detail(plane, made["sandboxID"])
    plane.runtime.behavior.start_error = None
    resumed = await plane.client.post(f"/v2{path}/connect", json={"timeout": 60})

    assert_error(refused, 500)
    assert found["state"] == "paused"
    assert resumed.status_code == 201


async def test_a_stored_sandbox_is_killed(plane):
    made = await create(plane)
    path = f"/sandboxes/{made['sandboxID']}"
    await plane.client.post(f"{path}/pause", json={"memory": False})

    assert (await plane.client.delete(path)).status_code == 204
    assert list((plane.home.node / "sandboxes").iterdir()) == []


# what an attack on the control plane found


async def test_concurrent_extensions_keep_the_longest(plane):
    made = await create(plane, timeout=60)
    path = f"/v2/sandboxes/{made['sandboxID']}/connect"
    for _ in range(10):
        await plane.client.post(f"/sandboxes/{made['sandboxID']}/timeout", json={"timeout": 60})
        await asyncio.gather(
            *(plane.client.post(path, json={"timeout": wanted}) for wanted in (3000, 600, 1200))
        )

        assert left_s(await detail(plane, made["sandboxID"])) > 2900


async def test_an_extension_in_the_moment_of_the_end_counts(plane):
    made = await create(plane, timeout=60)
    row = await plane.store.sandbox(made["sandboxID"])
    stale = replace(row, end_at=datetime.now(UTC) - timedelta(seconds=1))
    # The end was due by what was read; meanwhile the record says otherwise.
    ended = await plane.scheduler.end(stale, SandboxEvent.EXPIRED, ends_by=datetime.now(UTC))

    assert ended is False
    assert (await detail(plane, made["sandboxID"]))["state"] == "running"


async def test_an_end_that_fails_is_tried_again(plane, monkeypatch):
    made = await create(plane, timeout=1)
    real, failures = plane.store.update_sandbox, iter([Internal("the disk is full")])

    async def failing(*args, **kwargs):
        if kwargs.get("ends_by") is not None and (failure := next(failures, None)):
            raise failure
        return await real(*args, **kwargs)

    monkeypatch.setattr(plane.store, "update_sandbox", failing)
    until = asyncio.get_running_loop().time() + 20
    while (await plane.client.get(f"/sandboxes/{made['sandboxID']}")).status_code == 200:
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.1)

    assert next(failures, "used") == "used"


async def test_a_record_that_cannot_be_finished_leaves_no_sandbox(plane, monkeypatch):
    real, failures = plane.store.update_sandbox, iter([Internal("the disk is full")] * 2)

    async def failing(*args, **kwargs):
        if failure := next(failures, None):
            raise failure
        return await real(*args, **kwargs)

    monkeypatch.setattr(plane.store, "update_sandbox", failing)
    refused = await plane.client.post("/v2/sandboxes", json={"templateID": "base"})
    until = asyncio.get_running_loop().time() + 20
    while plane.agent.live or await plane.store.all_sandboxes():
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.05)

    assert_error(refused, 500)


async def test_a_sandbox_that_somebody_else_ended_is_gone_for_clients(plane):
    made = await create(plane)
    await plane.agent.kill(made["sandboxID"])
    until = asyncio.get_running_loop().time() + 10
    while await plane.store.all_sandboxes():
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.02)

    assert (await plane.client.get(f"/sandboxes/{made['sandboxID']}")).status_code == 404


@pytest.mark.parametrize("depth", [65, 970, 2000, 50_000])
async def test_what_is_nested_too_deep_is_refused(plane, depth):
    body = b'{"templateID":"base","mcp":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
    headers = {"Content-Type": "application/json"}
    refused = await plane.client.post("/v2/sandboxes", content=body, headers=headers)

    assert "nested" in assert_error(refused, 400)["message"]


async def test_a_stored_sandbox_outlives_the_lack_of_its_image(plane):
    made = await create(plane)
    path = f"/sandboxes/{made['sandboxID']}"
    await plane.client.post(f"{path}/pause", json={"memory": False})
    image = plane.home.images / "base"
    image.rename(image.with_name("away"))
    refused = await plane.client.post(f"/v2{path}/connect", json={})
    found = await detail(plane, made["sandboxID"])
    image.with_name("away").rename(image)
    resumed = await plane.client.post(f"/v2{path}/connect", json={})

    assert_error(refused, 503)
    assert found["state"] == "paused"
    assert resumed.status_code == 201


async def test_a_key_whose_sandbox_is_paused_gives_that_sandbox(plane):
    body, headers = {"templateID": "base"}, {"Idempotency-Key": "paused"}
    first = await plane.client.post("/v2/sandboxes", json=body, headers=headers)
    await plane.client.post(f"/sandboxes/{first.json()['sandboxID']}/pause")
    second = await plane.client.post("/v2/sandboxes", json=body, headers=headers)

    assert second.status_code == 201
    assert second.json()["sandboxID"] == first.json()["sandboxID"]


async def test_a_filter_of_too_many_pairs_is_refused(plane):
    pairs = urlencode({f"k{number}": "v" for number in range(70)})

    assert_error(await plane.client.get(f"/v2/sandboxes?metadata={quote(pairs)}"), 400)


async def test_a_request_that_a_stopping_server_cuts_off_is_answered_in_json(plane, monkeypatch):
    begun = asyncio.Event()

    async def hang(*args, **kwargs):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(plane.scheduler, "find", hang)
    asking = asyncio.create_task(plane.client.get("/sandboxes/iabc"))
    await asyncio.wait_for(begun.wait(), 5)
    asking.cancel()
    answer = await asking

    assert assert_error(answer, 503)["message"] == "the server is stopping"
