import re

import numpy as np
import pytest
from PIL import Image

from fedfusion.reporting import plots
from fedfusion.types import FedfusionError


def example(name="example", label="what it is"):
    with plots.drawing():
        figure, (left, right) = plots.panels(plots.SINGLE, 2.0, 1, 2, sharey=True)
        for (series, look), axes in zip(plots.looks(["a", "b"]).items(), (left, right), strict=True):
            axes.plot([0, 1, 2], [0, 1, 4], label=series, **look)
            axes.fill_between([0, 1, 2], [0, 0, 1], [1, 2, 5], alpha=0.2)
        left.set_ylabel(label)
        figure.legend(loc="outside upper center")
    return plots.Plot(name, "A < B", "B is 4 & A is 1", figure)


def test_an_svg_says_what_it_shows_and_follows_the_colours_of_the_page():
    drawn = example().svg
    assert drawn.startswith("<svg ") and drawn.endswith("</svg>")
    assert '<title id="example-title">A &lt; B</title>' in drawn
    assert '<desc id="example-desc">B is 4 &amp; A is 1</desc>' in drawn
    assert 'role="img" aria-labelledby="example-title example-desc"' in drawn
    assert re.search(r'viewBox="0 0 248.4 144"', drawn) and not re.search(r'<svg[^>]* (width|height)="', drawn)
    assert "currentColor" in drawn and "var(--line)" in drawn
    assert plots.INK not in drawn and plots.RULE not in drawn and "#ffffff" not in drawn
    assert "<text" not in drawn and "<style" not in drawn and "<!--" not in drawn and "<metadata" not in drawn


def test_ids_of_two_plots_never_clash_and_every_reference_is_its_own():
    one, two = (set(re.findall(r'\bid="([^"]+)"', example(name).svg)) for name in ("one", "two"))
    assert one and not one & two
    for name, ids in (("one", one), ("two", two)):
        drawn = example(name).svg
        used = set(re.findall(r'href="#([^"]+)"', drawn)) | set(re.findall(r"url\(#([^)]+)\)", drawn))
        assert used and used <= ids and all(reference.startswith(f"{name}-") for reference in used)


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        plots.save(example().figure, tmp_path / folder / "snr=0.5")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["snr=0.5.pdf", "snr=0.5.png"]
    for name in ("snr=0.5.pdf", "snr=0.5.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert example().svg == example().svg


def test_files_are_fit_for_print(tmp_path):
    plots.save(example().figure, tmp_path / "plot")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width == round(plots.SINGLE * 200) and np.asarray(image.convert("L")).std() > 5
    pdf = (tmp_path / "plot.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/CIDFontType2" in pdf and b"/Type3" not in pdf  # TrueType, whole
    assert b"/CreationDate" not in pdf


def test_names_get_looks_that_differ_in_colour_marker_and_line():
    looks = plots.looks(list("abcdefgh"))
    for part in ("color", "marker", "linestyle"):
        assert len({str(look[part]) for look in looks.values()}) == 8
    assert plots.looks(list("abcdefghi"))["i"] == looks["a"]


def test_a_plot_of_two_columns_is_wide():
    with plots.drawing():
        wide = plots.Plot("w", "W", "1", plots.panels(plots.DOUBLE, 2)[0])
    assert wide.wide and not example().wide


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(FedfusionError, match=r"cannot write .*plots/x: File exists"):
        plots.save(example().figure, tmp_path / "plots" / "x")


def test_names_are_drawn_as_they_are_written_and_a_legend_leaves_out_none():
    name = r"_hid$\frac$"
    with plots.drawing():
        figure, (axes,) = plots.panels(plots.SINGLE, 2.0)
        axes.plot([0, 1], [0, 1], label=plots.named(name))
        axes.set_xticks([0, 1], [name, name])
        figure.legend(loc="outside upper center")
    assert plots.Plot("odd", "Odd", "1", figure).svg
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == [name]
    assert plots.named("plain") == "plain"


def test_labels_keep_inside_at_the_resolution_they_are_printed_in(tmp_path):
    with plots.drawing():
        figure, (axes,) = plots.panels(plots.SINGLE, 2.0)
        axes.set_yticks([0, 1], ["occluded-quarters", "inverted-strokes"])
    plots.Plot("labels", "Labels", "1", figure)
    plots.save(figure, tmp_path / "labels")
    shown = np.asarray(Image.open(tmp_path / "labels.png").convert("L"))
    assert (shown[:, 0] == 255).all() and shown.min() < 100
