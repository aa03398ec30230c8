"""Triton kernels that move KV blocks, and digest bytes, where they are.

``layout`` says where the bytes of a block lie, ``move`` gathers blocks into rows, scatters rows
into blocks and copies blocks, ``digest`` is the digest of the core. ``device`` has what runs on
the GPU, ``reference`` the same in plain torch. On the CPU the kernels run in Triton's interpreter,
where TRITON_INTERPRET=1 asked for it before Triton was imported.
"""
