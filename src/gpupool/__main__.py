"""``python -m gpupool`` is the ``gpupool`` command."""

from __future__ import annotations

from gpupool.cli import main

main()
