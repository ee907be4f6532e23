"""The encoder's runner in two processes, as torchrun starts them: one set of files, one line."""

from killing import start
from processes import free_port

from maw_gym.encoders.files import load_embedder
from maw_gym.run import Run


def two_processes(dataset, place, *more):
    words = ["--dataset", dataset, "--device", "cpu", "--logdir", place / "runs", "--run-name"]
    words += ["it", "--epochs", 1, "--depth-epochs", 1, *more]
    group = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        start("train encoder", *words, home=place, tiny=True, RANK=rank, LOCAL_RANK=rank, **group)
        for rank in range(2)
    ]


def test_two_processes_leave_one_run(tiny_folder, tmp_path):
    (status, out, err), (other, silent, told) = (
        one.ended() for one in two_processes(tiny_folder, tmp_path, "--batch-size", 4)
    )
    assert (status, other) == (0, 0), err + told
    run = tmp_path / "runs" / "it"
    assert [path.name for path in run.parent.iterdir()] == ["it"]
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json", "encoder.safetensors", "metrics.json",
    ]  # fmt: skip
    config, metrics = Run(run).config, Run(run).metrics
    assert (config["learner"], config["settings"]["depth_epochs"]) == ("encoder", 1)
    rows = metrics["baselines"]
    assert 0 < rows["standard attention"]["retrieval"]["nDCG@10"] <= 1
    assert {"mean pooling", "dense + BM25", "zero-shot NON-MAW"} <= set(rows)
    embedder, _ = load_embedder(run / "encoder.safetensors")
    assert embedder.maw.depths == len(metrics["depths"]["entropy"]) == 32
    assert f"; give others {run / 'encoder.safetensors'}" in out
    assert err.count("depth tables ...") == out.count("standard attention") == 1
    assert silent == ""


def test_a_batch_that_two_cannot_share_is_one_line(tiny_folder, tmp_path):
    first, other = two_processes(tiny_folder, tmp_path, "--batch-size", 5)
    status, _, err = first.ended()
    other.process.kill()  # as torchrun does
    assert status == 2
    assert [line for line in err.splitlines() if not line.endswith(" ...")] == [
        "error: batch_size 5 cannot be shared by 2 processes; give a multiple of 2"
    ]
    assert other.ended()[2] == ""
    assert not (tmp_path / "runs").exists()
