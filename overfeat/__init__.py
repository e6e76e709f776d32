"""Evaluate a ConvNet at every position and scale of an image (OverFeat, Sermanet et al. 2013).

`__init__.pyi` lists the public names. They are imported at their first use, so `import overfeat` alone loads no torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
