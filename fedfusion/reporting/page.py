"""The frame of every page: one file of HTML that needs no network and no script."""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedfusion.types import FedfusionError

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, path: Path, **facts: Any) -> None:
    """Fill `templates/<template>` with `facts` and write it to `path`; what ends in `.html.j2` is escaped.

    Parameters
    ----------
    template
        Name of the template; pages extend `page.html.j2`.
    path
        The file to write.
    facts
        What the template names; one that is missing is an error.

    Raises
    ------
    FedfusionError
        If the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["headings"] = headings
    environment.filters["anchor"] = anchor
    text = environment.get_template(template).render(facts)
    with writing(path):
        path.write_text(text.rstrip("\n") + "\n")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a sentence why `path` cannot be written."""
    try:
        yield
    except OSError as error:
        forbidden = error.errno in (errno.EACCES, errno.EROFS)
        advice = " (make its folder writable, or copy the run to one that is)" * forbidden
        raise FedfusionError(f"cannot write {path}: {error.strerror}{advice}") from error


def headings(body: str) -> list[tuple[str, Markup]]:
    """Anchor and text of each section of a page, for its table of contents."""
    return [(anchor, Markup(text)) for anchor, text in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body)]


def anchor(title: str) -> str:
    """A title as an id: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
