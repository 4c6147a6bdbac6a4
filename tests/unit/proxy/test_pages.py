import json

import pytest

from opene2b.proxy import pages

CHROME = b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36"

WANTS = [
    ({}, False),
    ({b"user-agent": b"curl/8.5.0"}, False),
    ({b"user-agent": b"python-httpx/0.28"}, False),
    ({b"user-agent": CHROME}, True),
    ({b"user-agent": b"MOZILLA"}, True),
    ({b"user-agent": b"Opera/9.80"}, True),
    ({b"user-agent": CHROME, b"accept": b"text/html,application/xhtml+xml,*/*;q=0.8"}, True),
    ({b"user-agent": CHROME, b"accept": b"*/*"}, True),
    ({b"user-agent": CHROME, b"accept": b"application/json"}, False),
    ({b"user-agent": CHROME, b"accept": b"application/json, text/html"}, True),
    ({b"user-agent": CHROME, b"x-requested-with": b"XMLHttpRequest"}, False),
    ({b"user-agent": CHROME, b"sec-fetch-mode": b"cors"}, False),
    ({b"user-agent": CHROME, b"sec-fetch-mode": b"no-cors"}, False),
    ({b"user-agent": CHROME, b"sec-fetch-mode": b"same-origin"}, False),
    ({b"user-agent": CHROME, b"sec-fetch-mode": b"websocket"}, False),
    ({b"user-agent": CHROME, b"sec-fetch-mode": b"navigate"}, True),
    ({b"user-agent": b"curl/8.5.0", b"sec-fetch-mode": b"navigate"}, True),
    ({b"sec-fetch-mode": b"navigate", b"accept": b"application/json"}, True),
]


@pytest.mark.parametrize(("headers", "expected"), WANTS)
def test_who_gets_a_page(headers, expected):
    assert pages.wants_html(headers) is expected


PROBLEMS = [
    (
        pages.not_found("iabc"),
        "Sandbox Not Found",
        {"sandboxId": "iabc", "message": "The sandbox was not found", "code": 502},
    ),
    (
        pages.port_closed("iabc", 80),
        "Closed Port Error",
        {
            "sandboxId": "iabc",
            "message": "The sandbox is running but port is not open",
            "port": 80,
            "code": 502,
        },
    ),
    (
        pages.token_missing("iabc"),
        "Missing Traffic Access Token",
        {
            "sandboxId": "iabc",
            "message": "Sandbox is secured with traffic access token."
            " Token header 'e2b-traffic-access-token' is missing",
            "code": 403,
        },
    ),
    (
        pages.token_wrong("iabc"),
        "Invalid Traffic Access Token",
        {
            "sandboxId": "iabc",
            "message": "Sandbox is secured with traffic access token."
            " Provided token in header 'e2b-traffic-access-token' is invalid",
            "code": 403,
        },
    ),
]


@pytest.mark.parametrize(("problem", "title", "body"), PROBLEMS)
def test_programs_get_the_bodies_that_clients_know(problem, title, body):
    answer = pages.answer(problem, {})

    assert json.loads(answer.body) == body
    assert (answer.status, answer.content_type) == (body["code"], "application/json; charset=utf-8")


@pytest.mark.parametrize(("problem", "title", "body"), PROBLEMS)
def test_people_get_a_page_of_the_same_status(problem, title, body):
    answer = pages.answer(problem, {b"user-agent": CHROME})

    assert (answer.status, answer.content_type) == (body["code"], "text/html; charset=utf-8")
    assert answer.body.startswith(b"<html")
    assert f"<title>{title}</title>".encode() in answer.body


@pytest.mark.parametrize("make", [pages.not_found, pages.token_missing, pages.unavailable])
def test_nothing_in_a_page_is_markup_of_others(make):
    answer = pages.answer(make("<script>&{status}"), {b"user-agent": CHROME})

    assert b"<script>" not in answer.body


def test_an_answer_ends_where_its_head_says():
    encoded = pages.answer(pages.not_found("iabc"), {}).encode(with_body=True, close=True)
    head, _, body = encoded.partition(b"\r\n\r\n")

    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert b"Connection: close" in head.split(b"\r\n")
    assert b"Access-Control-Allow-Origin: *" in head.split(b"\r\n")
