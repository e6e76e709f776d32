"""Files of the repository on the site: what its pages link to becomes part of it, and their links lead there.

Pages in docs/ and files outside it keep the links that the repository's own view of them needs.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from notebooks import as_markdown

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
# Paths in the site of files outside docs/; all others are in the folder repository/.
SITE_PATHS = {
    "README.md": "index.md", "BENCHMARKS.md": "benchmarks.md", "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}  # fmt: skip
LANGUAGES = {".py": "python", ".pyi": "python", ".sh": "sh", ".toml": "toml", ".yml": "yaml"}
COPIED = (".jpg", ".json", ".png", ".svg")
LINK = r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\](?:\([^()\s]*\))?)*)\]\(([^()\s]+)\)"
FENCED = r"^ {0,3}(?P<fence>```+|~~~+).*?^ {0,3}(?P=fence)[ \t]*$"
CODE_OR_LINK = re.compile(f"{LINK}|{FENCED}|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def site_path(path: str) -> str:
    """The path in the site of a file of the repository, which is given by its path from the root."""
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    suffix = PurePosixPath(path).suffix
    page = "" if suffix in (".md", *COPIED) else ".md"  # text and notebooks become pages
    return SITE_PATHS.get(path, f"repository/{path}{page}")


def page_of(path: str) -> str:
    """The Markdown of a text file, with the links that it has in the repository."""
    file, suffix = ROOT / path, PurePosixPath(path).suffix
    if suffix == ".md":
        return file.read_text()
    if suffix == ".ipynb":
        return as_markdown(file.read_text())
    return f"# {path}\n\n````{LANGUAGES.get(suffix, '')}\n{file.read_text()}````\n"


def links(text: str) -> Iterator[str]:
    """The targets of the links and images of a Markdown text."""
    targets: list[str] = []
    _each_link(text, lambda match: targets.append(match[3]) or match[0])
    yield from targets


def target_of(link: str, source: str) -> str | None:
    """The path from the root of what a link in a file means; None for an address, or an anchor in the same file."""
    if re.match(r"[a-z]+:|#", link):
        return None
    folder = PurePosixPath(source).parent
    return os.path.normpath(folder / link.partition("#")[0])


def linked(paths: list[str]) -> list[str]:
    """The files outside docs/ to which these pages lead, directly and through each other, and those of `SITE_PATHS`."""
    pending, known = [*paths, *(path for path in SITE_PATHS if path != "README.md")], []
    while pending:
        path = pending.pop()
        if path in known:
            continue
        known.append(path)
        if not path.endswith(COPIED):
            targets = (target_of(link, path) for link in links(page_of(path)))
            pending += [target for target in targets if target and (ROOT / target).is_file()]
    return sorted(path for path in known if not path.startswith(DOCS) and path != "README.md")


def site_links(text: str, source: str, uri: str) -> str:
    """A page with its links as the site has them; a link to a folder is only its text.

    source: The file's path in the repository; uri: the page's in the site.
    """

    def replace(match: re.Match) -> str:
        target = target_of(match[3], source)
        if target is None:
            return match[0]
        if (ROOT / target).is_dir():
            return match[2]
        _, hash, anchor = match[3].partition("#")
        relative = os.path.relpath(site_path(target), PurePosixPath(uri).parent)
        return f"{match[1]}[{match[2]}]({relative}{hash}{anchor})"

    return _each_link(text, replace)


def _each_link(text: str, replace: Callable[[re.Match], str]) -> str:
    """Text with every link outside of code replaced, and before it what is linked in its text."""

    def one(match: re.Match) -> str:
        if match[3] is None:
            return match[0]
        inner = match[2] and _each_link(match[2], replace)
        again = re.fullmatch(LINK, f"{match[1]}[{inner}]({match[3]})")
        return replace(again or match)

    return CODE_OR_LINK.sub(one, text)
