"""The command ``broker``. One file a command group; app.py puts them together and turns errors into exit codes."""

from broker.cli.app import main

__all__ = ["main"]
