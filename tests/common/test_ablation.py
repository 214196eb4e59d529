"""Runs are compared by what they cost, from the files that training leaves."""

import json

import pytest

from common.images import read_image
from tools.ablation import main


def leave_run(folder, sparse_n, losses):
    folder.mkdir()
    model = {"num_attention_heads": 2, "attention_head_dim": 48, "cross_attention_dim": 96, "num_layers": 6}
    config = {
        "transformer": {"config": {**model, "num_dense_ends": 1, "sparse_n": sparse_n}},
        "data": {"generated": True, "generated_sizes": [[17, 96, 96]]},
        "text": {"kind": "minilm", "max_length": 32},
        "global_batch_size": 8,
    }
    (folder / "train.json").write_text(json.dumps({"config": config}))
    rows = [{"step": 10 * i, "loss": 1.0, "validation/loss": loss} for i, loss in enumerate(losses, 1)]
    (folder / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_the_sparse_run_costs_less_for_as_many_steps(tmp_path, capsys):
    picture = tmp_path / "curves.png"
    runs = [leave_run(tmp_path / name, k, [1.0, 0.5, 0.25]) for name, k in (("dense", 1), ("k4", 4))]
    main([str(picture), *runs])
    dense, sparse = (line.split("|") for line in capsys.readouterr().out.splitlines()[2:4])
    assert (dense[1].strip(), dense[5].strip()) == ("dense", "0.2500")
    assert "2 dense, 4 sparse (k=4)" in sparse[2]
    assert 0 < float(sparse[3]) < float(dense[3])
    assert read_image(picture).std() > 5


def refused(capsys, *arguments):
    with pytest.raises(SystemExit, match="2"):
        main([*map(str, arguments)])
    return capsys.readouterr().err


def test_runs_that_cannot_be_compared_are_refused(tmp_path, capsys):
    picture, run = tmp_path / "curves.png", leave_run(tmp_path / "run", 4, [1.0])
    (tmp_path / "other").mkdir()
    same_name = leave_run(tmp_path / "other" / "run", 4, [1.0])
    assert "got runs named run, run, wanted names that differ" in refused(capsys, picture, run, same_name)
    assert "python -m tools.ablation" in refused(capsys, picture)
    (tmp_path / "run" / "losses.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert "no validation/loss in losses.jsonl" in refused(capsys, picture, run)
    report = json.loads((tmp_path / "run" / "train.json").read_text())
    for section, key, value, message in [
        ("data", "generated_sizes", [[17, 96, 96], [1, 96, 96]], "got 2 sizes"),
        ("transformer", "config", None, "began from transformer.path"),
    ]:
        report["config"][section][key] = value
        (tmp_path / "run" / "train.json").write_text(json.dumps(report))
        assert message in refused(capsys, picture, run)
