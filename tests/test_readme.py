"""README.md is the tutorial, experiments/README.md the evidence: what they show is checked, and run."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import typer

from fedfusion import composition, config, listing, sweep
from fedfusion.cli import app
from fedfusion.offline import merge
from fedfusion.offline.settings import of_root, of_run
from fedfusion.types import FedfusionError

ROOT = Path(__file__).parent.parent
NAMES = ("README.md", "experiments/README.md")
WRONG = "fedfusion validate agregator=krum"  # it shows what is said of a mistake
ELSEWHERE = re.compile(r"\b(DIR|owner/name|weights\.csv)\b|cannot load '")  # what the reader has, and the hub
OURS = ("conf/", "docker/", "experiments/", "fedfusion/", "tests/")  # paths that begin so are of this repository
FEW = 5  # blocks of the tutorial that are not run


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    not_run: str  # why, or nothing

    @property
    def file(self):
        """The file that it is to be written to, named in its first line."""
        named = re.match(r"# (\S+\.(?:py|yaml))\n", self.text)
        return named[1] if named else None


def text_of(name):
    return (ROOT / name).read_text()


def blocks(text):
    pattern = r"(?:<!-- not run: ([^>]*?) -->\n\n)?^```(\w*)\n(.*?)^```$"
    return [Block(language, body, why) for why, language, body in re.findall(pattern, text, re.M | re.S)]


def prose(text):
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def commands(text):
    """Lines of bash blocks and commands in the text, as words, and whether there may be placeholders in them."""
    found = []
    for block in blocks(text):
        if block.language == "bash":
            lines = block.text.replace("\\\n", "").splitlines()
            found += [(shlex.split(line, comments=True), bool(block.not_run)) for line in lines]
    spans = re.findall(r"`((?:fedfusion|make|python) [^`]+)`", prose(text))
    found += [([word for word in shlex.split(span) if word != "..."], True) for span in spans]
    return [(words, free) for words, free in found if words]


def parsed(words):
    """The verb of a `fedfusion` command, and its arguments and options; everything in it exists."""
    command, rest = typer.main.get_command(app), words[1:]
    context = click.Context(command, info_name="fedfusion")
    if rest and rest[0].startswith("--"):
        assert any(rest[0] in parameter.opts for parameter in command.params)
        return None, {}
    verbs = []
    while isinstance(command, click.Group) and rest:
        verb, command, rest = command.resolve_command(context, rest)
        verbs.append(verb)
        context = click.Context(command, parent=context, info_name=verb)
    if isinstance(command, click.Group) or not rest:
        return None, {}
    return " ".join(verbs), command.make_context(verbs[-1], list(rest), parent=context.parent).params


def resolve(verb, given, free):
    """Compose and check what a command chooses, without loading anything; where `free`, its files need not exist."""
    folders = [Path(given["config_dir"])] if given.get("config_dir") else []
    overrides = [*map(composition.search, folders), *(given.get("overrides") or [])]
    if verb == "sweep":
        single, _ = sweep.separate(overrides)
        overrides = [
            f"{o.get_key_element()}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else str(o.input_line)
            for o in single
        ]
    if verb in ("run", "deploy run", "sweep", "validate"):
        try:
            config.resolve(overrides)
        except FedfusionError as error:
            if not free or [said for said in str(error).splitlines() if not ELSEWHERE.search(said)]:
                raise
    elif verb == "merge":
        of_root("merge", merge.Merge, [text for text in given["arguments"] if "=" in text], ["fusion"])
    elif verb == "evaluate":
        of_run("evaluate", overrides, ("suite", "model", "head", "seed"))
    elif verb == "ls" and given["what"]:
        what = given["what"].split("/", 1)
        assert listing.describe(*what, folders) if len(what) == 2 else listing.listing(what[0], folders)


def wrong_with(words, free):
    """What is wrong with a command, or nothing."""
    try:
        if words[0] == "fedfusion":
            resolve(*parsed(words), free)
        elif words[0] == "flwr":
            for told in re.findall(r'overrides="([^"]*)"', " ".join(words)):
                resolve("run", {"overrides": told.split()}, free)
        elif words[0] == "make":
            assert all(re.search(rf"^{target}:", text_of("Makefile"), re.M) for target in words[1:])
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2])
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file()
    except (AssertionError, click.ClickException, FedfusionError) as error:
        return f"{shlex.join(words)}: {error if str(error) else type(error).__name__}"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's folder, with the files that the READMEs ask for in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in (block for name in NAMES for block in blocks(text_of(name)) if block.file):
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text)
    yield tmp_path
    for module in ("mine", "loudest"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_one(name, reader, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    found = [(words, free) for words, free in commands(text_of(name)) if shlex.join(words) != WRONG]
    assert len(found) > 20
    assert [error for words, free in found if (error := wrong_with(words, free))] == []


def test_the_mistake_that_is_shown_is_answered_with_the_nearest_name():
    assert WRONG in text_of("README.md") and "aggregator" in wrong_with(WRONG.split(), False)


def test_the_tables_are_those_of_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    for module in ("tables", "claims"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    from tables import filled, made

    tables = made()
    assert set(tables) == set(NAMES)
    for name in NAMES:
        readme = text_of(name)
        assert filled(readme, tables[name]) == readme
        for marker in ("<!-- table: ", "<!-- end of "):
            assert sorted(re.findall(rf"^{marker}(.+?) -->$", readme, re.M)) == sorted(tables[name])


def anchors(name):
    """What a link into a page may name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text_of(name)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_named_exists(name):
    text = prose(text_of(name))
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("https://")]
    missing = []
    for link in links:
        path, _, anchor = link.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        if not file.is_file() or anchor and anchor not in anchors(str(file.relative_to(ROOT))):
            missing.append(link)
    paths = {word.rstrip(".,;:") for word in re.findall(r"[^\s`()#]+", text) if word.startswith(OURS)}
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == [] and len(links) > 3 and len(paths) > 3


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_says_what_it_shows(name):
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text_of(name))
    assert pictures and all(len(words.split()) > 3 for words, _ in pictures)


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_as_short_as_those_of_the_code(name):
    assert [line for line in text_of(name).splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_the_contents_are_those_of_the_page():
    text = prose(text_of("experiments/README.md"))
    headings = [(len(marks) - 2, heading) for marks, heading in re.findall(r"^(##+) (.+)$", text, re.M)]
    listed = [(len(indent) // 2, entry) for indent, entry in re.findall(r"^( *)- \[(.+?)\]\(#", text, re.M)]
    assert listed == headings


def test_few_blocks_are_not_run_and_what_runs_them_instead_is_named():
    text = text_of("README.md")
    reasons = [block.not_run for block in blocks(text) if block.not_run]
    assert 0 < len(reasons) <= FEW and text.count("<!-- not run:") == len(reasons)
    for why in reasons:
        named = re.findall(r"tests/\S+?\.py|\.ci/run", why)
        assert named and all((ROOT / path).is_file() for path in named)


SHORT = """\
#!{python}
# fedfusion, with runs so small that they take seconds
import os, sys
words = sys.argv[1:]
if words[0] in ("run", "sweep") and "--resume" not in words:
    given = {{word.partition("=")[0] for word in words}}
    short = ["suite.tasks=[upright-digit,flipped-size]", "suite.clients_per_task=3", "rounds=1", "client.steps=2"]
    if words[0] == "sweep":
        short += ["attack.fraction=0,0.34", "defence=task_aware", "seed=0"]
    elif "realign=none" not in words:
        short += ["realign.steps=2"]
    words += [override for override in short if override.partition("=")[0] not in given]
os.execv("{real}", ["{real}", *words])
"""


@pytest.mark.slow
def test_the_blocks_run_one_after_another_as_a_reader_would(tmp_path):
    real = Path(sys.executable).with_name("fedfusion")
    binaries, folder = tmp_path / "bin", tmp_path / "reader"
    binaries.mkdir()
    folder.mkdir()
    (binaries / "fedfusion").write_text(SHORT.format(python=sys.executable, real=real))
    (binaries / "fedfusion").chmod(0o755)
    path = os.pathsep.join([str(binaries), str(real.parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    said = []
    for block in blocks(text_of("README.md")):
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text)
        elif block.language and not block.not_run:
            program = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[block.language]
            words = [*program, block.text]
            done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, textwrap.dedent(f"{block.text}\n{done.stdout}\n{done.stderr}")
            said.append(done.stdout + done.stderr)
    everything = "\n".join(said)
    accuracy, reported = (
        float(re.search(rf"^{word} (\S+)$", everything, re.M)[1]) for word in ("accuracy", "reported")
    )
    assert accuracy == pytest.approx(reported, abs=1e-6) and 0 < accuracy <= 1
    assert "2 finished already" in everything and re.search(r"about [\d.]+ min$", everything, re.M)
    assert re.search(r"^\s+holes +A share of the parameters is lost\.$", everything, re.M)
    for file in (
        "runs/first/adapter/README.md", "runs/first/report.html", "compare.html", "merged/adapter_model.safetensors",
        "sweeps/budget/report.html",
    ):  # fmt: skip
        assert (folder / file).is_file(), file
