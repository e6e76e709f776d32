"""The drawings of docs/concepts.md: `python docs/drawings/draw.py` writes them beside this file."""

from pathlib import Path

FOLDER = Path(__file__).parent
STYLE = """
  svg { --card: #f6f8fb; --ink: #1f2430; --soft: #5b6472; --line: #b9c1cd; --sky: #d8e4f5; --hill: #a9c4ea;
        --far: #c3d5f0; --mark: #1f5fd0; --hot: #c96a00; --sun: #ffc24d; --a: #1f5fd0; --b: #c96a00; --c: #0b8a6a }
  @media (prefers-color-scheme: dark) { svg { --card: #171b23; --ink: #e8ebf1; --soft: #a8b1c0; --line: #4b5566;
        --sky: #26344b; --hill: #3e5a86; --far: #31486b; --mark: #7fb0ff; --hot: #ffb152; --sun: #d99a2b;
        --a: #7fb0ff; --b: #ffb152; --c: #5fd3ae } }
  text { font: 14px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: var(--ink) }
  .small { font-size: 12.5px; fill: var(--soft) }
"""


class Drawing:
    """An SVG of a size on a card, with light and dark colours."""

    def __init__(self, width: int, height: int, title: str):
        self._size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        self._parts = [f"<title>{title}</title>", f"<style>{STYLE}</style>"]
        self.rectangle(0, 0, width, height, "fill:var(--card)", radius=10)

    def __str__(self) -> str:
        return f'<svg xmlns="http://www.w3.org/2000/svg" {self._size} role="img">\n' + "\n".join(
            [*self._parts, "</svg>\n"]
        )

    def add(self, element: str, style: str = "", **attributes: object) -> None:
        """Add an element; `style` is its CSS."""
        text = "".join(f' {name}="{value}"' for name, value in attributes.items())
        self._parts.append(f"<{element}{text}" + (f' style="{style}"' if style else "") + "/>")

    def rectangle(
        self, x: float, y: float, width: float, height: float, style: str = "fill:none;stroke:var(--line)", *,
        radius: float = 0,
    ) -> None:  # fmt: skip
        self.add("rect", style, x=x, y=y, width=width, height=height, rx=radius)

    def dot(self, x: float, y: float, radius: float = 2.5, color: str = "--ink") -> None:
        self.add("circle", f"fill:var({color})", cx=x, cy=y, r=radius)

    def line(self, *points: tuple[float, float], style: str = "stroke:var(--soft)") -> None:
        self.add("polyline", f"fill:none;{style}", points=" ".join(f"{x},{y}" for x, y in points))

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A horizontal arrow to the right or left."""
        (x, y), back = end, -6 if end[0] > start[0] else 6
        self.line(start, end, style="stroke:var(--soft);stroke-width:1.5")
        self.add("path", "fill:var(--soft)", d=f"M{x} {y} l{back} -4 v8 z")

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "start", small: bool = False, style: str = ""
    ) -> None:
        css = f' style="{style}"' if style else ""
        kind = ' class="small"' if small else ""
        self._parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}"{kind}{css}>{text}</text>')

    def photograph(self, x: float, y: float, width: float, height: float) -> None:
        """A landscape with a sun."""

        def at(across: float, down: float) -> str:
            return f"{x + across * width:g},{y + down * height:g}"

        self.rectangle(x, y, width, height, "fill:var(--sky)")
        self.add("circle", "fill:var(--sun)", cx=x + 0.64 * width, cy=y + 0.33 * height, r=0.11 * height)
        for color, points in (
            ("--far", ((0, 0.7), (0.3, 0.4), (0.6, 0.75), (0.85, 0.55), (1, 0.7), (1, 1), (0, 1))),
            ("--hill", ((0, 0.85), (0.2, 0.75), (0.5, 0.9), (0.8, 0.78), (1, 0.88), (1, 1), (0, 1))),
        ):
            self.add("polygon", f"fill:var({color})", points=" ".join(at(*point) for point in points))
        self.rectangle(x, y, width, height)

    def window(self, x: float, y: float, width: float, height: float, color: str = "--mark") -> None:
        self.rectangle(x, y, width, height, f"fill:none;stroke:var({color});stroke-width:2.5")


def window() -> Drawing:
    """One window of an image goes through the net."""
    drawing = Drawing(720, 250, "A window of an image, the net, and a score for every class")
    drawing.photograph(20, 20, 300, 200)
    drawing.window(150, 36, 100, 100)
    drawing.text(20, 238, "an image", small=True)
    drawing.text(200, 152, "a window", anchor="middle", style="fill:var(--mark)")
    drawing.arrow((256, 86), (400, 86))
    drawing.rectangle(402, 56, 96, 60, "fill:none;stroke:var(--ink);stroke-width:1.5", radius=8)
    drawing.text(450, 91, "net", anchor="middle")
    drawing.arrow((500, 86), (546, 86))
    for i, (name, score) in enumerate((("sun", 0.9), ("moon", 0.07), ("cloud", 0.03))):
        drawing.text(556, 62 + 26 * i, name)
        drawing.rectangle(606, 51 + 26 * i, 92 * score, 14, "fill:var(--hot)")
    drawing.text(556, 152, "a score for every class", small=True)
    return drawing


def stride() -> Drawing:
    """All windows of an image, and the map of their scores."""
    size, step, left, top = 100, 40, 20, 40
    drawing = Drawing(720, 285, "Windows a stride apart, and the map that has an output for each")
    drawing.text(left, 26, "image of 200 x 300 pixels, windows of 100, stride 40", small=True)
    drawing.photograph(left, top, 300, 200)
    for row in range(3):
        for column in range(6):
            drawing.dot(left + column * step + size / 2, top + row * step + size / 2)
    drawing.window(left, top, size, size, "--soft")
    drawing.window(left + 3 * step, top + step, size, size)
    drawing.line((left, top + 110), (left, top + 122), (left + step, top + 122), (left + step, top + 110))
    drawing.text(left + step / 2, top + 137, "stride", anchor="middle")
    drawing.text(left, 262, "dots: the centres of the windows", small=True)
    drawing.arrow((332, 140), (406, 140))
    drawing.text(369, 128, "net", anchor="middle")
    for row in range(3):
        for column in range(6):
            heat = max(0.0, 1 - 0.34 * abs(row - 0.5) - 0.34 * abs(column - 3.6))
            style = f"fill:var(--hot);fill-opacity:{heat:.2f};stroke:var(--line)"
            drawing.rectangle(420 + 45 * column, 72 + 45 * row, 45, 45, style)
    drawing.window(420 + 45 * 3, 72 + 45, 45, 45)
    drawing.text(420, 60, "the map of a class's scores: 3 x 6", small=True)
    drawing.text(420, 230, "output (1, 3)", style="fill:var(--mark)")
    drawing.text(420, 250, "sees the window that starts at pixel 40 x (1, 3)", small=True)
    return drawing


def fine_stride() -> Drawing:
    """Pooling at every offset, along one axis."""
    drawing = Drawing(720, 330, "Pooling at offsets 0, 1 and 2, and the outputs of each, interleaved")
    left, cell, colors = 190, 40, ("--a", "--b", "--c")
    drawing.text(20, 46, "last feature maps")
    for i in range(12):
        drawing.rectangle(left + cell * i, 28, cell, 28, "fill:var(--sky);stroke:var(--line)")
    for offset, color in enumerate(colors):
        y = 84 + 52 * offset
        drawing.text(20, y + 19, f"pooled by 3, offset {offset}")
        for i in range((12 - offset) // 3):
            x = left + cell * (offset + 3 * i)
            style = f"fill:var({color});fill-opacity:.28;stroke:var({color});stroke-width:1.5"
            drawing.rectangle(x + 2, y, 3 * cell - 4, 28, style, radius=4)
    drawing.text(20, 264, "outputs at fine stride")
    for i in range(7):
        style = f"fill:var({colors[i % 3]});fill-opacity:.45;stroke:var(--line)"
        drawing.rectangle(left + cell * i, 245, cell, 28, style)
        drawing.text(left + cell * (i + 0.5), 264, str(i), anchor="middle")
    drawing.text(left + cell * 7 + 14, 264, "an output sees two pooled cells", small=True)
    drawing.text(left, 302, "at coarse stride there is offset 0 alone: outputs 0, 3 and 6", small=True)
    return drawing


def scale() -> Drawing:
    """One window size at three scales."""
    drawing = Drawing(720, 344, "The same window on three sizes of an image, and what it sees of the image as given")
    side, left = 60, 20
    for factor, color in ((0.5, "--c"), (1.0, "--a"), (1.5, "--b")):
        width, height = 180 * factor, 120 * factor
        drawing.photograph(left, 32, width, height)
        x, y = left + 0.64 * width - side / 2, 32 + max(0, 0.33 * height - side / 2)
        drawing.window(x, y, side, side, color)
        drawing.text(left, 24, f"scale {factor}", style=f"fill:var({color})")
        left += width + 22
    drawing.text(20, 248, "The window has the same number", small=True)
    drawing.text(20, 266, "of pixels at every scale.", small=True)
    drawing.photograph(244, 226, 153, 102)
    for factor, color in ((0.5, "--c"), (1.0, "--a"), (1.5, "--b")):
        seen = side / factor * 0.85
        y = 226 + max(0, 0.33 * 102 - seen / 2)
        drawing.window(244 + 0.64 * 153 - seen / 2, y, seen, seen, color)
    drawing.text(412, 248, "What it sees of the image as given", small=True)
    drawing.text(412, 266, "is smaller at larger scales:", small=True)
    drawing.text(412, 284, "small objects are detected there.", small=True)
    return drawing


def borders() -> Drawing:
    """What a padded convolution sees at a window's border, and windows beyond the border of the image."""
    drawing = Drawing(720, 290, "Exact borders, neighbours, and windows that reach beyond the image")
    for left, title, inside in ((20, 'borders="exact"', False), (254, 'borders="neighbours"', True)):
        drawing.text(left, 30, title)
        drawing.photograph(left, 44, 210, 160)
        drawing.window(left + 80, 74, 90, 90)
        for row in range(3):
            for column in range(3):
                outside = column == 2 and not inside
                color = "fill:var(--card)" if outside else "fill:var(--sun);fill-opacity:.55"
                x, y = left + 80 + 90 - 36 + 18 * column, 100 + 18 * row
                drawing.rectangle(x, y, 18, 18, f"{color};stroke:var(--ink)")
                if outside:
                    drawing.text(x + 9, y + 13.5, "0", anchor="middle", small=True)
        lines = ("padding is zero at every window's", "border, as in a cropped window")
        lines = ("a convolution sees what lies", "beside the window in the image") if inside else lines
        for i, line in enumerate(lines):
            drawing.text(left, 228 + 18 * i, line, small=True)
    drawing.text(488, 30, "reach 0.25")
    drawing.rectangle(488, 44, 212, 160, "fill:var(--line);fill-opacity:.5;stroke:var(--line)")
    drawing.photograph(510, 66, 168, 116)
    drawing.window(488, 44, 88, 88)
    for i, line in enumerate(
        ("a window may begin a quarter of", "its side beyond the image, over", "pixels of the mean colour")
    ):
        drawing.text(488, 228 + 18 * i, line, small=True)
    return drawing


def box() -> Drawing:
    """Boxes are half-open."""
    cell, left, top = 34, 60, 46
    drawing = Drawing(720, 290, "The box (2, 1, 6, 4) on an image of 6 x 9 pixels")
    for row in range(6):
        for column in range(9):
            drawing.rectangle(left + cell * column, top + cell * row, cell, cell, "fill:var(--sky);stroke:var(--line)")
    drawing.rectangle(left + 2 * cell, top + cell, 4 * cell, 3 * cell, "fill:var(--sun);fill-opacity:.5")
    drawing.window(left + 2 * cell, top + cell, 4 * cell, 3 * cell)
    for x in range(10):
        drawing.text(left + cell * x, top - 8, str(x), anchor="middle", small=True)
    for y in range(7):
        drawing.text(left - 10, top + cell * y + 4, str(y), anchor="end", small=True)
    drawing.text(left + 9 * cell + 10, top - 8, "x", small=True)
    drawing.text(left - 10, top + 6 * cell + 24, "y", anchor="end", small=True)
    notes = ("box (x1, y1, x2, y2) = (2, 1, 6, 4)", "pixels 2 to 5 across, 1 to 3 down", "4 pixels wide, 3 high",
             "the whole image: (0, 0, 9, 6)")  # fmt: skip
    for i, note in enumerate(notes):
        drawing.text(420, 92 + 30 * i, note)
    return drawing


DRAWINGS = {
    f"{make.__name__.replace('_', '-')}.svg": make for make in (window, stride, fine_stride, scale, borders, box)
}

if __name__ == "__main__":
    for name, make in DRAWINGS.items():
        (FOLDER / name).write_text(str(make()))
