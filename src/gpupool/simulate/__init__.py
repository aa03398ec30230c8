"""A discrete-event simulator that drives the policies of ``gpupool.schedule``."""
