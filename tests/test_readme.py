import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tables_of_the_readme_are_those_of_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    monkeypatch.delitem(sys.modules, "tables", raising=False)
    from tables import TABLES, filled

    readme = (ROOT / "README.md").read_text()
    assert filled(readme) == readme and readme.count("<!-- end of") == len(TABLES)
