"""Measures the times of a real engine, for the simulator to go by.

The engine runs in a process of its own (``gpupool.vllm.profiling``); what it tells is put together
here.
"""
