import inspect
import sys

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from fedfusion.composition import options
from fedfusion.docstrings import docstring


def targets(node):
    for key, value in node.items():
        if key == "_target_" and value:
            yield value
        elif isinstance(value, dict):
            yield from targets(value)


TARGETS = sorted(
    {
        target
        for files in options().values()
        for path in files.values()
        for target in targets(OmegaConf.to_container(OmegaConf.load(path)))
    }
)


@pytest.mark.parametrize("target", [*TARGETS, "flwr.serverapp.strategy.FedMedian", "flwr.serverapp.strategy.Krum"])
def test_what_is_read_is_what_python_says(target):
    assert docstring(target) == inspect.getdoc(get_object(target)) != ""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that must not be imported, in which names are passed on and documentation is inherited."""
    home = tmp_path / "unimported"
    (home / "inner").mkdir(parents=True)
    (home / "__init__.py").write_text(
        "raise RuntimeError\nfrom .inner import Shown as Named\nfrom unimported.inner.deep import Base\n"
    )
    (home / "inner" / "__init__.py").write_text("from .deep import Shown\nfrom ..other import function\n")
    (home / "inner" / "deep.py").write_text(
        'from ..other import Grand\nclass Base(Grand): pass\nclass Shown(Base):\n    """Shown.\n\n    More.\n    """\n'
    )
    (home / "other.py").write_text(
        'class Grand:\n    "Of a grandparent."\nclass Bare: pass\ndef function():\n    "Does it."\n'
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("Named", "Shown.\n\nMore."),
        ("Base", "Of a grandparent."),
        ("inner.function", "Does it."),
        ("other.Bare", ""),
        ("Absent", ""),
        ("absent.Name", ""),
    ],
)
def test_names_are_followed_without_importing_anything(package, name, text):
    assert docstring(f"unimported.{name}") == text
    assert "unimported" not in sys.modules


def test_what_has_no_source_has_no_documentation():
    assert docstring("math.sin") == docstring("nowhere.Class") == docstring("Bare") == ""
