"""What is expected of every page, and a browser to look at it."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
FETCHED = {"src", "srcset", "data", "poster", "action", "background", "xlink:href", "href"}


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.children, self.parts = tag, attributes, parent, [], []

    def all(self, *tags):
        return [e for child in self.children for e in ([child] if child.tag in tags else []) + child.all(*tags)]

    @property
    def text(self):
        return " ".join("".join(part if isinstance(part, str) else part.text for part in self.parts).split())

    def inside(self, tag):
        return self.parent is not None and (self.parent.tag == tag or self.parent.inside(tag))


class Tree(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.root = self.at = Element("root", {}, None)
        self.feed(text)
        assert self.at is self.root, f"<{self.at.tag}> is never closed"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs), self.at)
        self.at.children.append(element)
        self.at.parts.append(element)
        self.at = self.at if tag in VOID else element

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert tag == self.at.tag, f"</{tag}> closes <{self.at.tag}>"
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.parts.append(data)


def check(text):
    """Structure, names for those who do not see, and no network; returns the tree of elements."""
    assert text.startswith("<!doctype html>")
    root = Tree(text).root
    every = root.all(*{e.tag for e in _walk(root)})
    ids = Counter(e.attributes["id"] for e in every if "id" in e.attributes)
    assert not [name for name, number in ids.items() if number > 1]
    assert not root.all("script", "link", "iframe", "object", "embed", "base")
    for e in every:
        for name in FETCHED & set(e.attributes):
            value = e.attributes[name]
            if e.tag == "a" and name == "href" and not value.startswith("#"):
                continue  # a link fetches nothing until it is followed
            assert value.startswith("#") and value[1:] in ids or value.startswith("data:"), (e.tag, value)
        for reference in ("aria-labelledby", "aria-describedby"):
            assert set(e.attributes.get(reference, "").split()) <= set(ids)
        used = re.findall(r"url\(([^)]*)\)", " ".join(filter(None, e.attributes.values())))
        assert all(url.startswith("#") and url[1:] in ids for url in used)
        assert not any(name.startswith("on") for name in e.attributes)
    assert "@import" not in text and not re.findall(r"url\((?!#)", text)
    (html,) = root.all("html")
    assert html.attributes["lang"] == "en" and root.all("title")[0].text
    assert len(root.all("main")) == len(root.all("h1")) == len(root.all("nav")) == 1
    levels = [int(e.tag[1]) for e in root.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    (nav,) = root.all("nav")
    named = [(e.attributes["id"], e.text) for e in root.all("h2")]
    assert [(a.attributes["href"][1:], a.text) for a in nav.all("a")] == named
    skip = root.all("a")[0]
    assert skip.attributes["href"] == "#" + root.all("main")[0].attributes["id"]
    for picture in [e for e in root.all("svg") if not e.inside("svg")]:
        assert picture.attributes["role"] == "img" and picture.attributes["aria-labelledby"]
        title, finding = picture.children[:2]
        assert title.tag == "title" and title.text and finding.tag == "desc" and re.search(r"\d", finding.text)
        assert picture.attributes["aria-labelledby"].split() == [title.attributes["id"], finding.attributes["id"]]
        assert not picture.all("text", "style"), "text is drawn, and a style would be the whole page's"
    assert all(e.attributes.get("alt") for e in root.all("img"))
    for table in root.all("table"):
        assert table.all("caption")[0].text and all("scope" in e.attributes for e in table.all("th"))
        region = table.parent.attributes
        assert (region["tabindex"], region["role"]) == ("0", "region") and region["aria-label"]
        widths = {len(e.children) for e in table.all("tr")}
        assert len(widths) == 1, "rows of one table have as many cells"
    for pre in root.all("pre"):
        assert pre.attributes["tabindex"] == "0" and pre.attributes["aria-label"]
    assert all(e.all("summary") for e in root.all("details"))
    return root


def _walk(element):
    for child in element.children:
        yield child
        yield from _walk(child)


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page: the picture, the width of the window and of the content, and the background."""

    picture: Path
    window: int
    content: int
    background: str


def chromium(page, folder, width, dark=False, height=900):
    """Show a page in a window of `width` pixels, the narrowest that a browser has or not."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    frame = f'<iframe style="border:0" width="{width}" height="{height}" srcdoc="{escape(page.read_text())}"></iframe>'
    script = (
        "<script>onload = () => { const d = document.querySelector('iframe').contentDocument, r = d.documentElement;"
        "document.body.dataset.seen = [d.defaultView.innerWidth, r.scrollWidth,"
        "d.defaultView.getComputedStyle(d.body).backgroundColor].join(';') }</script>"
    )
    host, picture = folder / f"host-{width}-{dark}.html", folder / f"{width}-{'dark' if dark else 'light'}.png"
    host.write_text(f'<!doctype html><body style="margin:0">{frame}{script}')
    flags = [
        CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'browser'}", f"--window-size={max(width, 500)},{height}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]  # fmt: skip
    subprocess.run([*flags, f"--screenshot={picture}", host.as_uri()], check=True, capture_output=True, timeout=120)
    shown = subprocess.run([*flags, "--dump-dom", host.as_uri()], check=True, capture_output=True, timeout=120)
    window, content, background = re.search(r'data-seen="([^"]*)"', shown.stdout.decode())[1].split(";")
    return Seen(picture, int(window), int(content), background)
