"""What importing gpupool does to a process: as good as nothing."""

from __future__ import annotations

import json
import subprocess
import sys

LOOK = """
import json, sys
import gpupool
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"modules": loaded, "maps": open("/proc/self/maps").read()}))
"""


def test_import_loads_neither_torch_nor_vllm_nor_cuda() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=120, check=True
    )
    seen = json.loads(ran.stdout)
    heavy = {"torch", "vllm", "numpy", "cupy", "msgspec", "click"}
    heavy |= {"starlette", "uvicorn", "httpx", "yaml"}
    assert heavy.isdisjoint(seen["modules"])
    assert "libcuda.so" not in seen["maps"]
    assert "memfd:" not in seen["maps"]
    assert ran.stderr == ""


def test_the_host_device_needs_no_cuda_driver() -> None:
    look = "import gpupool; gpupool.Pool(device='host', budget_bytes=1 << 21, page_bytes=1 << 21)"
    ran = subprocess.run(
        [sys.executable, "-c", look + "; print('libcuda.so' in open('/proc/self/maps').read())"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout == "False\n"
