"""MkDocs' hooks: generated pages, files from outside docs/, and headings of the API reference."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import command_line
import public_names
import repository
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

SOURCES: dict[str, str] = {}  # the file in the repository of a page from outside docs/


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors of headings are those of the repository's own view."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the command line's pages, and the files to which pages lead."""
    for uri, text in command_line.pages().items():
        files.append(File.generated(config, uri, content=text))
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages() if not file.generated_by]
    for source in repository.linked(pages):
        uri = repository.site_path(source)
        inclusion = InclusionLevel.INCLUDED if source in repository.SITE_PATHS else InclusionLevel.NOT_IN_NAV
        if source.endswith(repository.COPIED):
            file = File.generated(config, uri, abs_src_path=str(repository.ROOT / source), inclusion=inclusion)
        else:
            SOURCES[uri] = source
            file = File.generated(config, uri, content=repository.page_of(source), inclusion=inclusion)
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, **options: Any) -> str:
    """Links as the site has them; names of the API reference as users import them."""
    uri = page.file.src_uri
    if page.file.generated_by and uri not in SOURCES:
        return markdown
    markdown = repository.site_links(markdown, SOURCES.get(uri, f"docs/{uri}"), uri)
    return public_names.ENTRY.sub(lambda match: public_names.directive(match[1]), markdown)
