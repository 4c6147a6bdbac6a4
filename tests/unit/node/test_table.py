import json
import stat

import pytest

from opene2b.core.ids import ExecutionId, ImageId, SandboxId
from opene2b.core.resources import Resources
from opene2b.node.table import Entry, Order, Phase, Table


@pytest.fixture
def table(tmp_path):
    table = Table(tmp_path / "sandboxes")
    table.open()
    return table


@pytest.fixture
def entry():
    order = Order(
        sandbox_id=SandboxId("iab12"),
        execution_id=ExecutionId("e"),
        template_id="t",
        image_id=ImageId("base"),
        resources=Resources(memory_mib=7),
        env_vars={"A": "ü"},
        envd_access_token="secret",
        mask_request_host="${PORT}.example",
        allow_internet_access=False,
    )
    return Entry(
        order=order, phase=Phase.RUNNING, slot=3, address="10.0.0.2", handle={"pid": 1, "x": [2]}
    )


def test_an_entry_comes_back_as_it_was_saved(table, entry):
    table.make(entry)

    assert table.load() == {"iab12": entry}


def test_the_drivers_directory_is_empty_and_its_own(table, entry):
    table.make(entry)

    disk = table.disk(entry.order.sandbox_id)
    assert list(disk.iterdir()) == []
    assert stat.S_IMODE(disk.stat().st_mode) == 0o700


def test_the_same_sandbox_is_not_made_twice(table, entry):
    table.make(entry)

    with pytest.raises(FileExistsError):
        table.make(entry)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"order": {}, "phase": "running"}', '{"phase": "unheard-of"}', "\xff"],
)
def test_what_cannot_be_read_is_told_apart_from_what_is_not_there(table, entry, text):
    table.make(entry)
    (table.directory(entry.order.sandbox_id) / "entry.json").write_text(text, encoding="latin-1")

    assert table.load() == {"iab12": None}


def test_a_directory_without_an_entry_is_a_start_that_died(table):
    table.directory(SandboxId("iab12")).mkdir()

    assert table.load() == {"iab12": None}


def test_an_entry_in_the_directory_of_another_is_not_believed(table, entry):
    table.make(entry)
    table.directory(entry.order.sandbox_id).rename(table.directory(SandboxId("iother")))

    assert table.load() == {"iother": None}


def test_a_save_that_was_cut_off_leaves_the_entry_before(table, entry):
    table.make(entry)
    (table.directory(entry.order.sandbox_id) / "entry.new").write_text("{")

    assert table.load() == {"iab12": entry}


def test_files_that_are_no_sandboxes_are_left_alone(table, entry):
    (table.root / "README").write_text("x")
    (table.root / "Not-An-Id").mkdir()

    assert table.load() == {}


def test_a_field_of_a_newer_version_is_ignored(table, entry):
    table.make(entry)
    path = table.directory(entry.order.sandbox_id) / "entry.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_later": 1}))

    assert table.load() == {"iab12": entry}


def test_tokens_and_variables_are_not_shown(entry):
    assert "secret" not in repr(entry)
    assert "ü" not in repr(entry)
