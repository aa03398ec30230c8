"""KV blocks that leave the device with their model and come back with it.

``store`` keeps host copies of one model's blocks, ``cache`` knows which blocks of the device are
newer than their copies and which are still on their way, ``mover`` moves them.
"""
