"""The ``gpupool`` command and its commands, a file for each or few."""

from gpupool.cli.command import main

__all__ = ["main"]
