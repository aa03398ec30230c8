"""A budget of host memory: who has how much, who waits, and whose images are parked for it.

The daemon and the embedded pool drive the same objects, none of which is thread safe.
"""
