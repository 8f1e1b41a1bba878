"""Kernels for GPUs, written in Triton (Tillet, Kung & Cox, 2019), which comes with torch's builds for CUDA.

No GPU has run them yet. Without one, Triton's interpreter runs them on the CPU for the tests, and its compiler makes
machine code of them.
"""
