import json
import math

from fedfusion.tracking import Jsonl


def test_there_is_one_line_per_round_and_the_file_is_rewritten_on_resume(tmp_path):
    log = Jsonl(tmp_path / "metrics.jsonl")
    log.started([], 2)
    log.finished({"round": 1})
    log.finished({"round": 2, "half": "written before a crash"})
    log.started([{"round": 1}], 2)
    log.finished({"round": 2})
    log.concluded({"metrics": {}})
    log.close()
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == [{"round": 1}, {"round": 2}]


def test_a_figure_that_is_not_finite_is_null_in_a_round_that_goes_on_and_in_one_that_is_rewritten(tmp_path):
    log, record = Jsonl(tmp_path / "metrics.jsonl"), {"round": 1, "train_loss": math.nan, "mean": {"base": math.inf}}
    log.started([record], 2)
    log.finished(record)
    assert log.path.read_text().splitlines() == ['{"round": 1, "train_loss": null, "mean": {"base": null}}'] * 2
