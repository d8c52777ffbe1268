"""Check a built site: links lead to a page, a file or a place, nothing is fetched from outside, pictures have words.

python docs/_ext/links.py SITE
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a page loads by itself; a link may lead anywhere.
LOADED = {("img", "src"), ("script", "src"), ("link", "href"), ("source", "src"), ("iframe", "src")}
FIRST_PAGE = 500_000


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.links: list[tuple[str, str, str]] = []
        self.places: set[str] = set()
        self.silent: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append((tag, name, value))
            if name in ("id", "name") and value:
                self.places.add(value)
        if tag == "img" and not (dict(attrs).get("alt") or "").strip():
            self.silent.append(dict(attrs).get("src") or "")


def mistakes(site: Path) -> list[str]:
    """One line for each link that leads nowhere or loads from outside, silent picture, and for a heavy first page."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        found += [f"{path.relative_to(site)}: {picture} has no alternative text" for picture in page.silent]
        for tag, name, value in page.links:
            parts = urlsplit(value)
            if parts.scheme or parts.netloc:
                if (tag, name) in LOADED and parts.scheme != "data":
                    found.append(f"{path.relative_to(site)}: loads {value}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{path.relative_to(site)}: {value} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                found.append(f"{path.relative_to(site)}: {value}: no such place")
    index = site / "index.html"
    weight = sum(
        (index.parent / urlsplit(value).path).stat().st_size
        for tag, name, value in pages[index].links
        if (tag, name) in LOADED and not urlsplit(value).scheme
    )
    if (weight := weight + index.stat().st_size) > FIRST_PAGE:
        found.append(f"index.html: {weight} bytes with what it loads, expected at most {FIRST_PAGE}")
    return found


if __name__ == "__main__":
    found = mistakes(Path(sys.argv[1]).resolve())
    print("\n".join(found))
    sys.exit(bool(found))
