"""The pool daemon: owns, decides and accounts; it moves no bytes and has no CUDA context."""
