import pytest

from opene2b.api.routes import ENDPOINTS, NOT_YET
from opene2b.api.routing import Router

ROUTER = Router(
    [
        ("GET", "/templates", "list"),
        ("GET", "/templates/{id}", "get"),
        ("DELETE", "/templates/tags", "untag"),
        ("DELETE", "/templates/{id}", "delete"),
        ("GET", "/templates/{id}/files/{hash}", "files"),
    ]
)


def pick(method, path):
    return next((hit for found in ROUTER.find(path) if (hit := found.pick(method))), None)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/templates", ("list", {})),
        ("GET", "/templates/a%2Fb%3Ac", ("get", {"id": "a/b:c"})),
        ("GET", "/templates/tags", ("get", {"id": "tags"})),
        ("DELETE", "/templates/tags", ("untag", {})),
        ("DELETE", "/templates/x", ("delete", {"id": "x"})),
        ("GET", "/templates/x/files/y", ("files", {"id": "x", "hash": "y"})),
        ("GET", "/templates/", None),
        ("GET", "/templates/x/files/", None),
        ("GET", "//templates", None),
        ("PUT", "/templates", None),
        ("GET", "/", None),
        ("GET", "*", None),
    ],
)
def test_paths_lead_where_they_should(method, path, expected):
    assert pick(method, path) == expected


def test_the_same_route_twice_is_a_mistake():
    with pytest.raises(ValueError, match="twice"):
        Router([("GET", "/a", 1), ("GET", "/a", 2)])


def test_nothing_is_both_served_and_missing():
    served = {(row.method, row.path) for row in ENDPOINTS}

    assert not served & set(NOT_YET)
