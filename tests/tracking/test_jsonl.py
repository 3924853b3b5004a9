import json

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
