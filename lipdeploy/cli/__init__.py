"""The command line: one module a command, each importing what it needs when it runs."""

from lipdeploy.cli.entry import app, main

__all__ = ["app", "main"]
