"""Hooks of mkdocs: pages from outside docs/ join the site, links stay whole, shapes in docstrings are no links."""

import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "data/pusht_expert.md": "data/pusht_expert.md",
    "data/reach_expert.md": "data/reach_expert.md",
}
"""Path in the repository -> path in the site; docs/X is X there."""

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^):#\s]+)(#[^)\s]*)?\)")
SEVERAL = re.compile(r"^ +\w+(?:, \w+)+(?=: )", flags=re.MULTILINE)
IMAGE = re.compile(r"(!\[[^\]]*\]\()docs/([^):\s]+\))")


class PlainShapes(griffe.Extension):
    """Docstrings are plain text: [rows][columns] is a shape, not a link to a page called columns.

    One entry of Args may name several, as in "position_error, velocity_error: ...": the parser must not split it.
    """

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            text = SEVERAL.sub(lambda names: names[0].replace(", ", ",\u00a0"), obj.docstring.value)
            parts = re.split(r"(`[^`]*`)", text)
            plain = [part if part.startswith("`") else re.sub(r"\](\s?)\[", r"]\1\\[", part) for part in parts]
            obj.docstring.value = "".join(plain)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, target in OUTSIDE.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to pages become those of the site; links to other files become their paths in the repository."""
    here = page.file.src_uri
    source = next((path for path, target in OUTSIDE.items() if target == here), f"docs/{here}")

    def relinked(match: re.Match[str]) -> str:
        text, link, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        target = OUTSIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if target is None:
            return text if "`" in text or text != path else f"`{path}`"
        return f"[{text}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{anchor or ''})"

    fenced = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(relinked, IMAGE.sub(r"\1\2", part)) for part in fenced)
