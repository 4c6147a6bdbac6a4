"""What the documents say of the code is true."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/opene2b"
SETTING = re.compile(r"\b(?:OPENE2B|E2B|USE)_[A-Z_]*[A-Z]\b")


def tracked() -> list[Path]:
    """Files of the repository: in a clone what git tracks."""
    names = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_the_map_names_every_package_and_no_other():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    block = text.split("```\nsrc/opene2b/\n")[1].split("```")[0]
    named = set(re.findall(r"^  (\w+)/", block, re.MULTILINE))
    there = {path.parent.name for path in SOURCE.glob("*/__init__.py")}

    assert named == there


def test_the_architecture_fits_on_its_pages():
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) < 250


def test_every_setting_that_is_read_has_its_row_and_no_other():
    read = set(
        re.findall(r'env(?:\.get\(|, )"([A-Z0-9_]+)"', (SOURCE / "cli/config.py").read_text())
    )
    rows = set(
        re.findall(r"^\| `([A-Z0-9_]+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    )

    assert read
    assert rows == read


def test_a_server_started_through_make_with_sudo_gets_every_setting():
    rows = set(
        re.findall(r"^\| `([A-Z0-9_]+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    )
    passed = (ROOT / "Makefile").read_text().split("SETTINGS :=")[1].split("\nempty")[0]

    assert rows <= set(passed.replace("\\", " ").split())


@pytest.mark.parametrize("document", ["README.md", "SECURITY.md", "ARCHITECTURE.md"])
def test_a_document_names_only_settings_that_exist(document):
    known = set(
        re.findall(r"^\| `([A-Z0-9_]+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    ) | {"E2B_API_URL", "E2B_SANDBOX_URL", "E2B_API_KEY"}
    named = set(SETTING.findall((ROOT / document).read_text()))

    assert named <= known


@pytest.mark.parametrize(
    "document", ["README.md", "SECURITY.md", "ARCHITECTURE.md", "CHANGELOG.md"]
)
def test_links_between_documents_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / document).read_text())

    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z0-9-]+)`", (ROOT / "README.md").read_text()))

    assert named <= targets


def test_change_fragments_are_named_for_their_kind():
    wrong = [
        path.name
        for path in (ROOT / "changes").glob("*.md")
        if not re.fullmatch(r"[a-z0-9-]+\.(added|changed|fixed|removed|security)\.md", path.name)
    ]

    assert wrong == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/adr").glob("*.md")), ids=lambda path: path.stem
)
def test_a_decision_has_its_five_parts(path):
    text = path.read_text()
    parts = ["Status:", "## Context", "## Decision", "## Consequences", "## Options turned down"]

    assert re.match(r"# \d+[:.] .", text)
    assert [part for part in parts if f"\n{part}" not in text] == []


def test_decisions_are_numbered_once():
    numbers = [path.name[:4] for path in (ROOT / "docs/adr").glob("*.md")]

    assert len(numbers) == len(set(numbers))


def test_locks_name_no_index_and_no_file():
    locks = [*(ROOT / "requirements").glob("*.txt"), ROOT / "tests/e2e/js/package-lock.json"]
    wrong = [
        f"{path.name}: {line.strip()}"
        for path in locks
        for line in path.read_text().splitlines()
        if "://" in line and '"url"' not in line and "funding" not in line
    ]

    assert wrong == []


def test_no_file_holds_a_path_of_the_machine_it_was_written_on():
    # Spelled apart, so that this file does not hold them.
    forbidden = re.compile(
        "|".join(["/wo" + "rk/", "/ho" + r"me/(?!user\b)[a-z]", r"\.pye" + "nv/"])
    )
    wrong = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if forbidden.search(text):
            wrong.append(str(path.relative_to(ROOT)))

    assert wrong == []


def test_modules_stay_readable_in_one_go():
    long = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "gen" and len(path.read_text().splitlines()) > 500
    ]

    assert long == []
