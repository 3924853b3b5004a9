import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "experiments" / "quickstart" / "quickstart.ipynb"


def test_it_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) > 8 and not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::DeprecationWarning:jupyter_client")
def test_every_cell_runs_and_the_jammer_costs_something(monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    for name, folder in (("TMPDIR", "tmp"), ("IPYTHONDIR", "ipython"), ("JUPYTER_RUNTIME_DIR", "jupyter")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # tqdm wants ipywidgets
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    said = "".join(output.text for output in outputs if output.get("name") == "stdout")
    fused = [float(score) for score in re.findall(r"dB: fused_received (\S+),", said)]
    assert len(fused) == 2 and fused[0] > fused[1] and "trainable params" in said
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("adapter_model.safetensors" in output.get("data", {}).get("text/plain", "") for output in outputs)
