import subprocess
import sys

import pytest
from typer.testing import CliRunner

from opene2b import __version__
from opene2b.cli import main


def opene2b(*arguments):
    return CliRunner().invoke(main.app, arguments)


def test_the_version_is_printed():
    assert opene2b("version").stdout.strip() == __version__


@pytest.mark.parametrize(
    "command",
    ["serve", "api", "proxy", "node", "down", "doctor", "keys", "setup-base", "demo", "version"],
)
def test_every_command_is_in_the_help(command):
    assert f" {command} " in opene2b("--help").stdout


def test_a_bad_setting_is_one_sentence_and_exit_code_2(monkeypatch):
    monkeypatch.setenv("E2B_API_PORT", "http")
    result = opene2b("doctor")

    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "opene2b: E2B_API_PORT is 'http': it must be a whole number from 1 to 65535"
    ]


def test_help_imports_no_server():
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, opene2b.cli.main\n"
            "heavy = {'grpc', 'sqlalchemy', 'starlette', 'uvicorn', 'httpx', 'e2b'}\n"
            "print(sorted(heavy & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )

    assert listed.stdout.strip() == "[]"
