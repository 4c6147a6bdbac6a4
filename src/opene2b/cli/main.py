"""The command line: `opene2b COMMAND`. Each command is a module, imported only when it is asked for."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from opene2b import __version__
from opene2b.cli import config as configs
from opene2b.core.errors import InvalidArgument, ServiceError

USAGE, FAILED, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    help="Self-hosted sandboxes for every unmodified E2B client. Settings: docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="API keys of this installation.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


@contextmanager
def plain_errors() -> Iterator[None]:
    """What the user can act on is one sentence and an exit code; anything else is a bug and shows its trace."""
    try:
        yield
    except ServiceError as exc:
        print(f"opene2b: {exc.message}", file=sys.stderr)
        if exc.detail:
            print(exc.detail, file=sys.stderr)
        raise typer.Exit(USAGE if isinstance(exc, InvalidArgument) else FAILED) from exc
    except KeyboardInterrupt as exc:
        raise typer.Exit(INTERRUPTED) from exc


@app.command()
def serve() -> None:
    """Run the server on this machine until Ctrl-C; sandboxes outlive it."""
    from opene2b.cli import serve as command

    with plain_errors():
        raise typer.Exit(command.run(configs.load()))


@app.command()
def api() -> None:
    """Run the control plane alone (started by `serve`)."""
    with plain_errors():
        from opene2b.cli import api as command

        command.run(configs.load())


@app.command()
def proxy() -> None:
    """Run the sandbox proxy alone (started by `serve`)."""
    with plain_errors():
        from opene2b.cli import proxy as command

        command.run(configs.load())


@app.command()
def node() -> None:
    """Run the node agent alone (started by `serve`; needs root)."""
    with plain_errors():
        from opene2b.cli import node as command

        command.run(configs.load())


@app.command()
def down(
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove templates, database, keys and logs.")
    ] = False,
) -> None:
    """End every sandbox of this OPENE2B_HOME and remove what they used."""
    from opene2b.cli import down as command

    with plain_errors():
        command.run(configs.load(), purge=purge)


@app.command()
def doctor() -> None:
    """Say what this machine lacks to run sandboxes, and the remedy."""
    from opene2b.cli import doctor as command

    with plain_errors():
        raise typer.Exit(command.run(configs.load()))


@app.command("setup-base")
def setup_base() -> None:
    """Build the base template now, if it is not there."""
    from opene2b.cli import setup_base as command

    with plain_errors():
        raise typer.Exit(command.run(configs.load()))


@app.command()
def demo() -> None:
    """Show the whole journey with the stock Python SDK; leaves nothing behind."""
    from opene2b.cli import demo as command

    with plain_errors():
        raise typer.Exit(command.run(configs.load()))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What the key is for.")] = "unnamed",
) -> None:
    """Make a key and print it: it cannot be shown again."""
    from opene2b.cli import keys as command

    with plain_errors():
        raise typer.Exit(command.run(configs.load(), ["create", name]))


@keys_app.command("list")
def keys_list() -> None:
    """List the keys, masked."""
    from opene2b.cli import keys as command

    with plain_errors():
        raise typer.Exit(command.run(configs.load(), ["list"]))


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="Its id, as `keys list` shows it.")],
) -> None:
    """Refuse a key from now on."""
    from opene2b.cli import keys as command

    with plain_errors():
        raise typer.Exit(command.run(configs.load(), ["revoke", key]))


def main() -> None:
    # nft, ip and modprobe lie where a shell after plain `su` does not look.
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    app(prog_name="opene2b")
