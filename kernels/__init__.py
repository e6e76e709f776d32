"""Triton kernels. They know pointers, shapes and strides; gradients and nets are the business of overfeat."""
