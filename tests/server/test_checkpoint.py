import pytest
import torch

from fedfusion.server.checkpoint import Checkpoints, write_atomically


def test_the_last_round_is_loaded_and_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load() is None
    for r in range(1, 5):
        checkpoints.save(r, {"adapters": torch.full((2, 3), float(r))}, {"round": r})
    tensors, facts = checkpoints.load()
    assert facts == {"round": 4} and (tensors["adapters"] == 4).all()
    assert [folder.name for folder in checkpoints.rounds()] == ["round-0003", "round-0004"]


def test_a_half_written_round_is_not_a_round(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"adapters": torch.ones(1)}, {"round": 1})
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        checkpoints.save(2, {"adapters": torch.zeros(1)}, {"round": 2})
    monkeypatch.undo()
    assert checkpoints.load()[1] == {"round": 1}
    checkpoints.save(2, {"adapters": torch.zeros(1)}, {"round": 2})
    assert checkpoints.load()[1] == {"round": 2}


def test_tensors_that_share_memory_are_written(tmp_path):
    one = torch.ones(2)
    Checkpoints(tmp_path).save(1, {"fused": one, "realigned": one}, {})
    assert torch.equal(Checkpoints(tmp_path).load()[0]["realigned"], one)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["results.json"]
