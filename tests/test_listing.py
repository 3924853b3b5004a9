import re

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedfusion.composition import options
from fedfusion.listing import describe, listing, reflowed, show
from fedfusion.validation import ConfigErrors

FUSION = [row for row in listing("fusion")]


@pytest.mark.parametrize("row", FUSION, ids=[row["name"] for row in FUSION])
def test_the_data_that_a_fusion_rule_needs_is_what_its_class_says(row):
    rule = instantiate(OmegaConf.load(options()["fusion"][row["name"]]), _convert_="all")
    assert row["data"] == rule.data


@pytest.mark.parametrize("width", [40, 59, 60, 80, 200])
def test_every_choice_has_its_summary_and_one_line_of_reference(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = listing()
    lines = show(rows, in_full=False).splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(dict.fromkeys(row["group"] for row in rows))
    assert all(len(line) <= width or " " not in line.strip() for line in lines)  # an address is not broken
    text = " ".join(" ".join(lines).split())
    for row in rows:
        assert f"{row['name']} {row['summary']}" in text
        if address := re.search(r"https?://[^\s;,]+", row["reference"]):
            assert any(line.endswith(address[0]) for line in lines)
    assert sum("http" in line for line in lines) == sum("http" in row["reference"] for row in rows)


def test_a_group_is_listed_with_references_in_full(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = " ".join(show(listing("fusion"), in_full=True).split())
    for row in listing("fusion"):
        assert row["reference"] in text
    assert "adamerging AdaMerging" in text and "needs unlabelled" in text


def test_an_option_is_described_by_its_file_and_the_code_behind_it_and_its_parts():
    facts = describe("channel", "mimo")
    assert facts["yaml"] == options()["channel"]["mimo"].read_text()
    assert facts["documentation"].count("References\n---") >= 3
    assert "channel.jammer\n\n" in facts["documentation"] and "channel.receiver\n\n" in facts["documentation"]
    with pytest.raises(ConfigErrors, match="no 'mimmo' in channel/ .did you mean 'mimo'"):
        describe("channel", "mimmo")
    with pytest.raises(ConfigErrors, match="no group 'chanel' .did you mean 'channel'"):
        listing("chanel")


def test_options_of_ones_own_are_listed_with_what_their_file_says(tmp_path, monkeypatch):
    (tmp_path / "my" / "fusion").mkdir(parents=True)
    (tmp_path / "my" / "fusion" / "mine.yaml").write_text(
        "# Mine alone.\n# Needs: few labels\n_target_: my_rule.Rule\n"
    )
    (tmp_path / "my_rule.py").write_text(
        'class Rule:\n    """A rule.\n\n    References\n    ----------\n    Me, 2026\n    """'
    )
    monkeypatch.syspath_prepend(tmp_path)
    (row,) = [row for row in listing("fusion", [tmp_path / "my"]) if row["name"] == "mine"]
    assert row == {
        "group": "fusion", "name": "mine", "summary": "Mine alone.", "reference": "Me, 2026", "data": "few labels",
    }  # fmt: skip
    assert describe("fusion", "mine", [tmp_path / "my"])["documentation"].startswith("A rule.")


PROSE = """A sentence that is a good deal longer than thirty
columns, and goes on in a line below.

.. math:: a = b + c + d + e + f + g + h + i + j
          k = l

- one thing among several others that is
  explained in two lines
- another

Parameters
----------
f
    Of which there are more
    than one could think.

==== =================================
a    a table that is wider than that
==== =================================
"""


def test_prose_is_reflowed_and_nothing_else(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert reflowed(PROSE) == (
        "A sentence that is a good deal\nlonger than thirty columns,\nand goes on in a line below.\n\n"
        ".. math:: a = b + c + d + e + f + g + h + i + j\n          k = l\n\n"
        "- one thing among several\n  others that is explained in\n  two lines\n- another\n\n"
        "Parameters\n----------\nf\n    Of which there are more\n    than one could think.\n\n"
        "==== =================================\na    a table that is wider than that\n"
        "==== ================================="
    )


def test_no_word_of_any_documentation_is_lost(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for group, files in options().items():
        for name in files:
            text = describe(group, name)["documentation"]
            assert reflowed(text).split() == text.split()
