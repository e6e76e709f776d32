"""Any torch module that classifies a window, at every window of an image: exact, at a fraction of the cost.

`convert.densify` is the entry, `net.DensifiedNet` the result. The module is exported (export.py), and its graph
interpreted on whole images (interpreter.py). values.py says what windows share, sliding.py what happens at their
borders; rules.py lists how each op acts on that, and where there is no rule the op runs on windows one by one.
"""
