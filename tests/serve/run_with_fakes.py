"""`gpupool serve` with a fake daemon and fake engines: `run_with_fakes.py POOL_YAML`.

Each model's `args` is `{fake: [option, ...]}` for the fake engine. Exits as `run` does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fake_pool import query_status

from gpupool.errors import GpupoolError
from gpupool.serve.app import Parts, serve
from gpupool.serve.config import ImagesConfig, ModelConfig, ParkingConfig, PoolConfig, load_config
from gpupool.serve.lifecycle import RestartPolicy
from gpupool.serve.progress import LineReporter

HERE = Path(__file__).parent


def daemon_command(
    pool: PoolConfig, socket_path: Path, parking: ParkingConfig | None, rank: int
) -> list[str]:
    return [sys.executable, str(HERE / "fake_pool.py"), str(socket_path)]


def engine_command(
    model: ModelConfig, port: int, sockets: Sequence[Path], images: ImagesConfig | None
) -> list[str]:
    options = model.args.get("fake", [])
    assert isinstance(options, list)
    return [
        *(sys.executable, str(HERE / "fake_engine.py")),
        *(model.name, str(port), str(sockets[0].parent)),
        *map(str, options),
    ]


def main() -> int:
    parts = Parts(
        daemon_command,
        engine_command,
        query_status,
        RestartPolicy(first_delay_s=0.05),
        stop_grace_s=float(sys.argv[2]),
    )
    reporter = LineReporter(sys.stdout, sys.stderr)
    try:
        return serve(load_config(Path(sys.argv[1])), reporter, parts)
    except GpupoolError as error:
        reporter.error(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
