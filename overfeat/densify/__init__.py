"""Any torch module that classifies a window, at every window of an image: exact, at a fraction of the cost.

`convert.densify` is the entry, `net.DensifiedNet` the result. The module is exported (export.py), and its graph
interpreted on whole images (interpreter.py). values.py says what windows share, sliding.py what happens at their
borders; rules.py lists how each op acts on that, and where there is no rule the op runs on a batch of windows.
fusion.py and head.py run layers together, cost.py and table.py count operations and bytes, check.py compares the result
with the module. backbone.py takes the graph up to a node as feature layers to train on (features.py, initial_net.py).
"""
