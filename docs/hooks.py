"""What the site has besides the pages of docs/: a reference page per room of the package, documents of the root."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

#: Documents that lie elsewhere, by the page that shows them.
ELSEWHERE = {
    "manifests.md": "manifests/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


#: Rooms that nobody imports from: the command line has a page of its own, the others are inner works.
INNER = {"cli", "deprecation", "files", "flags", "ranges", "schema", "speechbrain_parts"}


def rooms() -> list[str]:
    """The rooms of the package, by name."""
    found = (ROOT / "speech_adapters").iterdir()
    names = {path.stem for path in found if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return sorted(name for name in names - INNER if not name.startswith("_"))


def on_files(files: Files, config: Any) -> None:
    """Add the pages that no file of docs/ is."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=_moved((ROOT / source).read_text(encoding="utf-8"), source)))
    for room in rooms():
        text = f"# {room}\n\n::: speech_adapters.{room}\n    options:\n      show_root_heading: false\n"
        files.append(File.generated(config, f"api/{room}.md", content=text))
    config.nav = _expand(config.nav, [file.src_uri for file in files.documentation_pages()])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page without the comment above its title, which would hide it from the navigation."""
    return re.sub(r"\A<!--.*?-->\n", "", markdown)


def _expand(nav: Any, pages: list[str]) -> Any:
    """Patterns of the navigation, such as ``methods/*.md``, as the pages that they stand for."""
    if isinstance(nav, dict):
        return {title: _expand(entry, pages) for title, entry in nav.items()}
    if isinstance(nav, list):
        return [
            page
            for entry in nav
            for page in (
                sorted(page for page in pages if PurePosixPath(page).match(entry))
                if isinstance(entry, str) and "*" in entry
                else [_expand(entry, pages)]
            )
        ]
    return nav


def _moved(text: str, source: str) -> str:
    """A document's links, from where it is shown."""
    shown = {path: page for page, path in ELSEWHERE.items()}

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = (PurePosixPath(source).parent / target).as_posix()
        page = shown.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        return f"]({page}{anchor})" if page else f"]({target}{anchor})"

    return re.sub(r"\]\(([\w./-]+\.md)(#[\w-]+)?\)", link, text)
