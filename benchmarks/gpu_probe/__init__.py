"""What a GPU's driver does where cuda.h leaves it open; see ``benchmarks/probe_gpu.py``."""
