"""What a user who installs the package gets, and what its documentation shows."""

import html
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\((.+?)\\\)", re.S)


@pytest.mark.slow
def test_the_wheel_holds_hints_configuration_templates_and_data(tmp_path):
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"fedfusion/py.typed", "fedfusion/conf/config.yaml", "fedfusion/assets/digits.npz"} < names
    files = [path for folder in ("fedfusion", "conf") for path in (ROOT / folder).rglob("*")]
    for path in (path for path in files if path.suffix in (".py", ".yaml", ".j2", ".safetensors")):
        inside = path.relative_to(ROOT)
        assert str(inside if inside.parts[0] == "fedfusion" else Path("fedfusion") / inside) in names


@pytest.mark.slow
def test_the_api_pages_are_made_without_a_warning_and_no_formula_is_torn(tmp_path):
    pytest.importorskip("pdoc")
    made = subprocess.run(["make", "-s", "docs", f"SITE={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0 and not made.stderr, made.stderr
    pages = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.html")}
    for name in (
        "fedfusion.html",
        "fedfusion/aggregators.html",
        "fedfusion/fusion.html",
        "fedfusion/lora/product.html",
    ):
        assert Path(name) in pages
    assert 'id="run"' in pages[Path("fedfusion.html")] and 'id="Krum"' in pages[Path("fedfusion/aggregators.html")]
    known = set(re.findall(r"\\[A-Za-z]+", "".join(path.read_text() for path in (ROOT / "fedfusion").rglob("*.py"))))
    formulas = [html.unescape(a or b) for page in pages.values() for a, b in FORMULA.findall(shown(page))]
    assert len(formulas) > 150
    for formula in formulas:
        assert not re.search(r"</?(em|strong|code|p|a)\b", formula), formula  # Markdown has got at it
        assert set(re.findall(r"\\[A-Za-z]+", formula)) <= known, formula  # two lines have become one word


def shown(page):
    """A page without the source code in it."""
    return re.sub(r'<div class="pdoc-code.*?</pre>', "", page, flags=re.S)
