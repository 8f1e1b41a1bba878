"""The engine's own machine code: C++ in `csrc/`, compiled on the machine that runs it, loaded with ctypes.

Everything in it has a plain torch counterpart that is used where there is no compiler.
"""
