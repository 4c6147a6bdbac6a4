"""Every example of the README, run as it stands there."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JS = Path(__file__).parent / "js"
EXAMPLE = re.compile(
    r"<!-- example: (?P<name>[\w-]+) -->\n```\w+\n(?P<code>.*?)```\n<!-- prints: (?P<prints>.+?) -->",
    re.DOTALL,
)
SEPARATOR = "==== end of "


@dataclass(frozen=True)
class Example:
    name: str
    code: str
    prints: str
    """Regular expression that its output matches somewhere."""


def examples() -> list[Example]:
    return [
        Example(**match.groupdict()) for match in EXAMPLE.finditer((ROOT / "README.md").read_text())
    ]


def curl_examples() -> list[Example]:
    return [example for example in examples() if example.name.startswith("curl-")]


def example(name: str) -> Example:
    (found,) = [one for one in examples() if one.name == name]
    return found


def test_every_block_that_calls_curl_is_an_example():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)

    assert [block for block in blocks if "curl " in block] == [one.code for one in curl_examples()]


@pytest.fixture(scope="session")
def transcript(server) -> dict[str, str]:
    """What each curl example printed; one shell runs them in order, as a reader does."""
    script = "set -euo pipefail\n" + "".join(
        f"{one.code}\necho; echo '{SEPARATOR}{one.name}'\n" for one in curl_examples()
    )
    result = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, **server.client_env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    parts = re.split(rf"{SEPARATOR}([\w-]+)\n", result.stdout)
    found = dict(zip(parts[1::2], parts[::2], strict=False))
    found["failure"] = f"{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return found


@pytest.mark.parametrize("name", [one.name for one in curl_examples()])
def test_a_curl_example_prints_what_the_readme_says(transcript, name):
    assert name in transcript, transcript["failure"]
    assert re.search(example(name).prints, transcript[name])


def test_the_python_example_prints_what_the_readme_says(server):
    one = example("python")

    result = subprocess.run(
        [sys.executable, "-c", one.code],
        env={**os.environ, **server.client_env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert re.search(one.prints, result.stdout)


@pytest.mark.timeout(400)
def test_the_javascript_example_prints_what_the_readme_says(server):
    one = example("javascript")
    if not (JS / "node_modules/e2b").is_dir():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=JS, check=True, timeout=300)

    result = subprocess.run(
        ["node", "--input-type=module", "-e", one.code],
        cwd=JS,
        env={**os.environ, **server.client_env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert re.search(one.prints, result.stdout)
