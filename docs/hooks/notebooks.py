"""A Jupyter notebook as Markdown: its text, code, and what the code printed and drew."""

import json


def as_markdown(text: str) -> str:
    """The Markdown of a notebook's JSON; pictures are in the page itself."""
    cells = json.loads(text)["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell)) + "\n"


def _cell(cell: dict) -> list[str]:
    source = _text(cell["source"]).strip()
    if cell["cell_type"] != "code":
        return [source]
    return [f"````python\n{source}\n````", *filter(None, map(_output, cell["outputs"]))]


def _output(output: dict) -> str:
    """A picture where the output has one, else its HTML or text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<img src="data:{kind};base64,{_text(data[kind]).strip()}" alt="The output of the code above">'
    if "text/html" in data:
        return _text(data["text/html"]).strip()
    plain = _text(data.get("text/plain", "")).rstrip()
    return f"````\n{plain}\n````" if plain else ""


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
