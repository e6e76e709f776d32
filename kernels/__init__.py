"""Triton kernels: pointers, shapes and strides only; installed as `overfeat.kernels`.

None are written yet. The ops they will serve are in `overfeat/ops.py`.
"""
