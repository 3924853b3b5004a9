import errno
import os
import re

import pages
import pytest

from fedfusion.reporting import page, plots
from fedfusion.types import FedfusionError

PAGE = """{% extends "page.html.j2" %}
{% import "macros.html.j2" as make %}
{% block title %}{{ name }}{% endblock %}
{% block question %}What about {{ name }}?{% endblock %}
{% block answer %}It is {{ name }}.{% endblock %}
{% block body %}
{{ make.heading("Tables & more") }}
{{ make.table("Numbers of " ~ name, ["", "a"], [["x", name], ["y", "2"], ["all", "3"]], totals=1) }}
{{ make.table("Words", ["key", "value"], [["a.b", name]], code=true, numbers=false) }}
{{ make.figures(plots) }}
{{ make.heading("Rest") }}
{{ make.facts([("made of", name)]) }}
{{ make.warnings([name], "none") }}
{{ make.warnings([], "none at all") }}
{{ make.details("All", name) }}
{% endblock %}
"""
WILD = "<script>alert(\"1\")</script> & 'x'"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A page of every part, with a name that nobody would choose."""
    templates = tmp_path / "templates"
    templates.mkdir()
    for name in ("page.html.j2", "macros.html.j2"):
        (templates / name).write_text((page.TEMPLATES / name).read_text())
    (templates / "all.html.j2").write_text(PAGE)
    monkeypatch.setattr(page, "TEMPLATES", templates)
    with plots.drawing():
        drawn = []
        for name, width in (("one", plots.SINGLE), ("two", plots.DOUBLE)):
            figure, (axes,) = plots.panels(width, 2)
            axes.plot([0, 1], [0, 1], "o", label="line")
            drawn.append(plots.Plot(name, f"Plot {name}", f"From 0 to 1 {WILD}", figure))
    page.render("all.html.j2", tmp_path / "all.html", name=WILD, plots=drawn)
    return tmp_path / "all.html"


def test_every_part_is_sound_and_what_is_written_into_it_is_text(written):
    root = pages.check(written.read_text())
    assert "<script>alert" not in written.read_text()
    assert [e.text for e in root.all("h2")] == ["Tables & more", "Rest"]
    assert root.all("h1")[0].text == f"What about {WILD}?" and root.all("dd")[0].text == WILD
    numbers, words = root.all("table")
    assert [cell.text for cell in numbers.all("td")] == [WILD, "2", "3"]
    assert [row.attributes.get("class") for row in numbers.all("tr")] == [None, None, None, "total"]
    assert words.all("code")[0].text == "a.b"
    assert root.all("li")[-1].text == WILD and "none at all" in written.read_text()
    assert [e.attributes.get("class") for e in root.all("figure")] == [None, "wide"]
    assert root.all("figcaption")[0].text.startswith(f"Plot one. From 0 to 1 {WILD}")


def test_what_a_template_names_must_be_given_and_the_file_must_be_writable(tmp_path):
    with pytest.raises(Exception, match="is undefined"):
        page.render("report.html.j2", tmp_path / "x.html")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FedfusionError, match=r"cannot write .*/file/x.html: Not a directory$"),
        page.writing(tmp_path / "file" / "x.html"),
    ):
        (tmp_path / "file" / "x.html").write_text("x")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_forbids_it_is_to_be_made_writable(tmp_path, number):
    said = rf"cannot write .*x.html: {os.strerror(number)} \(make its folder writable"
    with pytest.raises(FedfusionError, match=said), page.writing(tmp_path / "x.html"):
        raise OSError(number, os.strerror(number))


def test_an_anchor_is_made_of_the_words_of_its_title():
    assert page.anchor("What differs: from  the (default)?") == "what-differs-from-the-default"


def colours():
    """Light, dark and printed colours, by their names."""
    blocks = re.findall(r":root \{(.*?)\}", (page.TEMPLATES / "page.html.j2").read_text(), re.DOTALL)
    assert len(blocks) == 3
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in blocks]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag_aa_in_every_mode():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for mode in colours():
        for text in ("text", "muted", "link"):
            for background in ("page", "card"):
                assert contrast(mode[text], mode[background]) >= 4.5, (mode, text, background)
        assert contrast(mode["text"], mode["warn"]) >= 4.5
        assert contrast(mode["warn-edge"], mode["page"]) >= 3
    light, dark, _ = colours()
    assert plots.INK == light["text"] and plots.RULE == light["line"]
    for look in plots.LOOKS[1:]:  # the first is the ink, which follows the page
        assert contrast(look["color"], dark["page"]) >= 3 and contrast(look["color"], light["page"]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_no_page_is_wider_than_its_window_and_dark_is_dark(written, tmp_path, width):
    light, dark = (pages.chromium(written, tmp_path, width, mode) for mode in (False, True))
    assert light.content <= light.window == width and dark.content <= dark.window == width
    assert (light.background, dark.background) == ("rgb(255, 255, 255)", "rgb(23, 23, 23)")
    assert light.picture.read_bytes() != dark.picture.read_bytes()
