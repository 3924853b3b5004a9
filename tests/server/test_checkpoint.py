import errno
import json
import re
import subprocess

import pytest
import torch

from fedfusion.server import checkpoint
from fedfusion.server.checkpoint import Checkpoints, folders, write_atomically
from fedfusion.tracking import Jsonl
from fedfusion.types import FedfusionError, RunFailed


@pytest.fixture
def two(tmp_path):
    """A run with two rounds on disk."""
    checkpoints = Checkpoints(tmp_path)
    for r in (1, 2):
        checkpoints.save(r, {"adapters": torch.full((50,), float(r))}, {"round": r})
    return checkpoints


def full(monkeypatch, name, number=errno.ENOSPC):
    """The disk is full when `name` of the checkpoints is to be written."""

    def fail(*_, **__):
        raise OSError(number, checkpoint.os.strerror(number), "somewhere")

    monkeypatch.setattr(name, fail)


def test_the_last_round_is_loaded_and_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load() is None
    for r in range(1, 5):
        checkpoints.save(r, {"adapters": torch.full((2, 3), float(r))}, {"round": r})
    tensors, facts = checkpoints.load()
    assert facts == {"round": 4} and (tensors["adapters"] == 4).all()
    assert [folder.name for folder in checkpoints.rounds()] == ["round-0003", "round-0004"]


def test_sha256sum_agrees_with_the_checksums(two):
    for folder in two.rounds():
        done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout == "state.safetensors: OK\nround.json: OK\n"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("harm", [truncate, flip, remove])
@pytest.mark.parametrize("name", ["state.safetensors", "round.json", "SHA256SUMS"])
def test_a_damaged_round_is_named_and_the_one_before_it_is_used(name, harm, two):
    last = two.rounds()[-1]
    harm(last / name)
    tensors, facts = two.load()
    assert facts == {"round": 1} and (tensors["adapters"] == 1).all() and two.latest() == two.rounds()[0]
    (warning,) = two.damaged
    assert str(last) in warning
    if harm is remove:
        assert f"{name} is missing" in warning
    elif name != "SHA256SUMS":
        assert re.search(rf"{name} has SHA-256 [0-9a-f]{{12}}\.\.\., SHA256SUMS says [0-9a-f]{{12}}\.\.\.", warning)
        assert len(set(re.findall(r"[0-9a-f]{12}", warning.split("SHA-256")[1]))) == 2
    two.save(2, {"adapters": torch.full((50,), 7.0)}, {"round": 2})  # the run goes on from there
    assert (two.load()[0]["adapters"] == 7).all() and not two.damaged


def test_without_an_intact_round_there_is_nothing_to_go_on_from(two):
    for folder, name in zip(two.rounds(), ("round.json", "state.safetensors"), strict=True):
        flip(folder / name)
    with pytest.raises(FedfusionError, match=r"no checkpoint is intact: .*round-0002: state.*round-0001: round.json"):
        two.load()
    assert two.latest() is None


@pytest.mark.parametrize("step", ["pathlib.Path.rename", "fedfusion.server.checkpoint.os.fsync", "pathlib.Path.mkdir"])
def test_a_round_that_cannot_be_written_ends_the_run_and_is_not_a_round(step, two, monkeypatch):
    full(monkeypatch, step)
    with pytest.raises(RunFailed) as failed:
        two.save(3, {"adapters": torch.zeros(50)}, {"round": 3})
    monkeypatch.undo()
    said, run_dir = str(failed.value), two.folder.parent
    assert f"cannot write {two.folder / 'round-0003'}: No space left on device (" in said
    assert re.search(r"\(\d+\.\d MB free\)", said) and f"Last good checkpoint: {two.folder / 'round-0002'}" in said
    assert said.endswith(f"--resume {run_dir}") and failed.value.exit_code == 1
    assert [path.name for path in sorted(two.folder.iterdir())] == ["round-0001", "round-0002"]
    assert two.load()[1] == {"round": 2}
    two.save(3, {"adapters": torch.zeros(50)}, {"round": 3})
    assert two.load()[1] == {"round": 3}


def test_the_reason_of_safetensors_is_read_from_its_words(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(RunFailed, match=r"cannot write .*adapter: No space left on device \(.*Last good .*: none"):
        with checkpoints.writing(tmp_path / "adapter"):
            raise checkpoint.SafetensorError("Error while serializing: I/O error: ... (os error 28)")


def test_a_reader_that_has_left_is_no_failed_write(tmp_path):
    with pytest.raises(BrokenPipeError), Checkpoints(tmp_path).writing(tmp_path / "metrics.jsonl"):
        raise BrokenPipeError


def test_tensors_that_share_memory_are_written(tmp_path):
    one = torch.ones(2)
    Checkpoints(tmp_path).save(1, {"fused": one, "realigned": one}, {})
    assert torch.equal(Checkpoints(tmp_path).load()[0]["realigned"], one)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    full(monkeypatch, "fedfusion.server.checkpoint.os.fsync")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "newer")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_metrics_that_cannot_be_rewritten_are_left_as_they_were(tmp_path, monkeypatch):
    path, checkpoints = tmp_path / "metrics.jsonl", Checkpoints(tmp_path)
    path.write_text('{"round": 1}\n')
    full(monkeypatch, "pathlib.Path.replace")
    with pytest.raises(RunFailed, match="metrics.jsonl: No space left on device"), checkpoints.writing(path):
        Jsonl(path).started([], 4)
    assert path.read_text() == '{"round": 1}\n'


def test_folders_are_replaced_once_all_of_them_are_written(tmp_path):
    for folder in ("adapter", "personal/client-00", "checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "old").touch()
    with pytest.raises(OSError, match="full"), folders(tmp_path) as temporary:
        (temporary / "adapter").mkdir()
        raise OSError("full")
    assert (tmp_path / "adapter" / "old").exists()
    with folders(tmp_path) as temporary:
        for folder in ("adapter", "personal/client-01"):
            (temporary / folder).mkdir(parents=True)
            (temporary / folder / "new").write_text(json.dumps(folder))
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["adapter/new", "checkpoints/old", "personal/client-01/new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "checkpoints", "personal"]
