"""What a verb must not import: everybody waits for it at every call."""

import subprocess
import sys

import pytest

CODE = """
import runpy, sys
sys.argv = ["fedfusion", *{arguments!r}]
try:
    runpy.run_module("fedfusion", run_name="__main__")
except SystemExit:
    pass
print(*sorted({{name.split(".")[0] for name in sys.modules}}), file=sys.stderr)
"""
LIBRARIES = {
    "torch",
    "numpy",
    "flwr",
    "transformers",
    "peft",
    "datasets",
    "flwr_datasets",
    "pandas",
    "matplotlib",
    "ray",
}
CONFIGURATION = {"hydra", "omegaconf", "pydantic"}
NOT_TO_VALIDATE = LIBRARIES - {"torch", "numpy", "flwr"} | {"scipy", "sklearn", "seaborn", "sympy", "PIL", "jinja2"}


def imported(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments, absent",
    [
        (["--help"], LIBRARIES | CONFIGURATION),
        (["--version"], LIBRARIES | CONFIGURATION),
        (["deploy", "--help"], LIBRARIES | CONFIGURATION),
        (["ls"], LIBRARIES),
        (["ls", "fusion/ties"], LIBRARIES),
        (["validate"], NOT_TO_VALIDATE),
        (["validate", "channel=mimo", "attack=alie", "rounds=0"], NOT_TO_VALIDATE),
    ],
)
def test_a_verb_imports_no_more_than_it_needs(arguments, absent):
    loaded = imported(CODE.format(arguments=arguments))
    assert "typer" in loaded and not absent & loaded


@pytest.mark.parametrize(
    "module, absent",
    [
        ("fedfusion", LIBRARIES | CONFIGURATION),
        ("fedfusion.composition", LIBRARIES),
        ("fedfusion.config", NOT_TO_VALIDATE | {"flwr"}),
        ("fedfusion.lora.model", NOT_TO_VALIDATE | {"flwr"}),
        ("fedfusion.tasks.digits", NOT_TO_VALIDATE | {"flwr"}),
    ],
)
def test_a_module_imports_no_more_than_it_needs(module, absent):
    code = f"import sys, {module}; print(*{{n.split('.')[0] for n in sys.modules}}, file=sys.stderr)"
    loaded = imported(code)
    assert "fedfusion" in loaded and not absent & loaded
