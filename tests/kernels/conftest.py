"""Kernels run in Triton's interpreter, which is chosen when Triton is imported.

vLLM imports Triton too, and must not get the interpreter: so the tests in ``interpreted`` run in
processes of their own, started by test_kernels_interpreted.py, and are not collected in any other.
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
