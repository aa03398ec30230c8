"""Gangs: the ranks of one tensor parallel engine, which come, step and leave together.

A rank that left while another began the next step would be waited for inside a collective
operation, by one that cannot leave. So ranks agree on the last step of a turn, by number, before
any of them leaves.
"""
