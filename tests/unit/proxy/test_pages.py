import json

import pytest

from opene2b.proxy import pages

MOZILLA = b"Mozilla/5.0 (X11) Firefox/130"


@pytest.mark.parametrize(
    ("headers", "html"),
    [
        ({}, False),
        ({b"user-agent": b"curl/8"}, False),
        ({b"user-agent": MOZILLA}, True),
        ({b"user-agent": MOZILLA, b"accept": b"text/html,application/json"}, True),
        ({b"user-agent": MOZILLA, b"accept": b"application/json"}, False),
        ({b"user-agent": MOZILLA, b"accept": b"*/*"}, True),
        ({b"user-agent": MOZILLA, b"sec-fetch-mode": b"cors"}, False),
        ({b"user-agent": MOZILLA, b"sec-fetch-mode": b"websocket"}, False),
        ({b"user-agent": MOZILLA, b"x-requested-with": b"XMLHttpRequest"}, False),
        ({b"sec-fetch-mode": b"navigate"}, True),
    ],
)
def test_people_get_a_page_and_programs_json(headers, html):
    answer = pages.answer(pages.not_found("iabc"), headers)

    assert answer.content_type.startswith("text/html" if html else "application/json")
    assert answer.body.startswith(b"<html" if html else b"{")


def test_the_bodies_that_clients_tell_apart():
    closed = json.loads(pages.answer(pages.port_closed("iabc", 80), {}).body)
    missing = json.loads(pages.answer(pages.not_found("iabc"), {}).body)

    assert closed == {
        "sandboxId": "iabc",
        "message": "The sandbox is running but port is not open",
        "port": 80,
        "code": 502,
    }
    assert missing == {
        "sandboxId": "iabc",
        "message": "The sandbox was not found",
        "code": 502,
    }


@pytest.mark.parametrize(
    ("problem", "title"),
    [
        (pages.not_found("iabc"), "Sandbox Not Found"),
        (pages.port_closed("iabc", 80), "Closed Port Error"),
        (pages.token_missing("iabc"), "Missing Traffic Access Token"),
        (pages.token_wrong("iabc"), "Invalid Traffic Access Token"),
    ],
)
def test_pages_have_their_titles(problem, title):
    page = pages.answer(problem, {b"sec-fetch-mode": b"navigate"}).body.decode()

    assert f"<title>{title}</title>" in page


def test_nothing_of_a_request_gets_into_a_page_as_markup():
    page = pages.answer(
        pages.not_found("<script>alert(1)</script>"), {b"sec-fetch-mode": b"navigate"}
    )

    assert b"<script>" not in page.body
