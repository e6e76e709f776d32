"""Griffe's extension: docstrings as the API reference shows them."""

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

from docstrings import comment_of, one_name_each, with_links


class Docstrings(griffe.Extension):
    """Short forms in the source, written out for the reference.

    Arguments that share a description get one each, attributes that of the comment in their line, and documented names
    in backticks become links.
    """

    def on_instance(self, *, obj: griffe.Object, **options: Any) -> None:
        """Change the docstring of an object when it is loaded."""
        if obj.docstring:
            obj.docstring.value = with_links(one_name_each(obj.docstring.value), obj.name)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **options: Any) -> None:
        """Give an attribute of a class a docstring."""
        if attr.docstring is None and attr.parent and attr.parent.is_class and not attr.name.startswith("_"):
            text = comment_of(attr.source)
            if text and f"\n    {attr.name}: " not in getattr(attr.parent.docstring, "value", ""):
                attr.docstring = griffe.Docstring(with_links(text, attr.name), parent=attr)
