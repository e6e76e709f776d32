"""The kernels compiled without a GPU: their resources, machine code and host time; see __main__.py."""
