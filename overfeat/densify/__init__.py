"""Any torch module that classifies a window, at every window of an image: exact, at a fraction of the cost.

`convert.densify` is the entry. The module is exported (export.py) and its graph interpreted on whole images
(interpreter.py) by rules for what windows share (values.py, sliding.py, rules.py).
"""
