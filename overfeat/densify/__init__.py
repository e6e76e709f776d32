"""Any torch module that classifies a window, at every window of an image: exact, at a fraction of the cost.

`convert.densify` is the entry. The module is exported (export.py) and its graph interpreted on whole images
(interpreter.py) by rules for what windows share (values.py, sliding.py, rules.py).
"""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """This package, which as `overfeat.densify` is the function as well.

    Python binds a package to its name in the parent as soon as one of its modules is imported.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from overfeat.densify.convert import densify

        return densify(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
