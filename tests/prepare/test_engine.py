"""Steps and chains: order, resume, the same bytes for any number of workers, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from database import give_database

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.prepare.chain import Chain, chain_steps, run_chain
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.step import Machine, Step

sys.path.insert(0, str(Path(__file__).parent))
from counting import CountingOptions, CountingStage

COUNTING = "counting.CountingStage"


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": f"t{i:02d}", "text": "字" * (i % 7 + 1), "kept": [i]}) for i in range(40)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def step(source: Path, folder: Path, **options) -> Step:
    values = CountingOptions(**options)
    return Step(COUNTING, COUNTING, values, (str(source),), str(folder), str(folder))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Everything a step writes but the time that it took."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "timing.json" and "mlflow" not in p.parts
    }


@pytest.fixture
def uninterrupted(source, tmp_path) -> dict[str, bytes]:
    run_step(step(source, tmp_path / "whole", least=2, batch=3), Machine(shard_items=5))
    return contents(tmp_path / "whole")


def test_a_step_keeps_the_order_and_counts(source, tmp_path):
    result = run_step(step(source, tmp_path / "out", least=2), Machine(shard_items=4))
    kept = [i for i in range(40) if i % 7 + 1 >= 2]
    written = lines(tmp_path / "out" / "manifest.jsonl")
    assert [item["kept"][0] for item in written] == kept
    rejected = lines(tmp_path / "out" / "rejected.jsonl")
    assert [r["item"]["kept"][0] for r in rejected] == [i for i in range(40) if i % 7 == 0]
    assert {(r["reason"], r["value"], r["threshold"]) for r in rejected} == {("too short", 1, 2)}
    counts = result.counts
    assert (counts.items_in, counts.items_out, counts.rejected) == (
        40,
        len(kept),
        {"too short": 40 - len(kept)},
    )
    assert counts.counts["letters"] == sum(i % 7 + 1 for i in kept)
    assert result.items_run == 40


def test_a_finished_step_runs_nothing_again(source, tmp_path):
    first = run_step(step(source, tmp_path / "out"), Machine())
    before = contents(tmp_path / "out")
    again = run_step(step(source, tmp_path / "out"), Machine())
    assert again.items_run == 0
    assert again.counts == first.counts
    assert contents(tmp_path / "out") == before


def test_shards_change_no_line(source, tmp_path, uninterrupted):
    run_step(step(source, tmp_path / "out", least=2, batch=3), Machine(shard_items=1000))
    whole = contents(tmp_path / "out")
    names = [name for name in whole if name.startswith("audio/")]
    for name in ("manifest.jsonl", "rejected.jsonl", *names):
        assert whole[name] == uninterrupted[name]


def test_units_never_reach_over_a_shard(source, tmp_path):
    run_step(step(source, tmp_path / "out", batch=3), Machine(shard_items=4))
    for item in lines(tmp_path / "out" / "manifest.jsonl"):
        first = item["kept"][0] // 3 * 3
        assert item["neighbours"] == [f"t{i:02d}" for i in range(first, min(first + 3, 40))]


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(source, tmp_path, uninterrupted):
    run_step(step(source, tmp_path / "out", least=2, batch=3), Machine(workers=2, shard_items=5))
    assert contents(tmp_path / "out") == uninterrupted


def killed_run(source, folder, *options) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "prepare")])}
    command = [sys.executable, "-m", "lit_moss", "prepare", COUNTING, str(source), "--out", str(folder)]
    command += ["--least", "2", "--batch", "3", "--shard_items", "5", "--track", "false", *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder.parent)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["t00", "t22", "t39"])
def test_a_killed_run_goes_on_where_it_was(source, tmp_path, uninterrupted, victim):
    options = ("--kill_at", victim, "--once", str(tmp_path / "once"))
    assert killed_run(source, tmp_path / "out", *options).returncode == -signal.SIGKILL
    assert killed_run(source, tmp_path / "out", *options).returncode == 0
    assert contents(tmp_path / "out") == uninterrupted


@pytest.mark.nightly
def test_a_killed_worker_is_one_clear_line_and_nothing_is_lost(source, tmp_path, uninterrupted):
    options = ("--kill_at", "t22", "--once", str(tmp_path / "once"), "--workers", "2")
    killed = killed_run(source, tmp_path / "out", *options)
    assert killed.returncode == 2
    assert "a worker was killed" in killed.stderr
    assert killed_run(source, tmp_path / "out", *options).returncode == 0
    assert contents(tmp_path / "out") == uninterrupted


def test_a_worker_that_ended_after_its_shard_was_done_leaves_no_log(source, tmp_path, uninterrupted):
    """The pool ends the other workers of a killed one, and may do so just before they remove their logs."""
    counting = step(source, tmp_path / "out", least=2, batch=3)
    run_step(counting, Machine(shard_items=5))
    (tmp_path / "out" / "parts" / "part-00003.done").unlink()  # of the killed worker
    for ending in ("log", "lock"):
        (tmp_path / "out" / "parts" / f"part-00002.{ending}").write_text("{}\n")
    run_step(counting, Machine(shard_items=5))
    assert contents(tmp_path / "out") == uninterrupted


@pytest.mark.nightly
def test_workers_of_a_killed_run_end_with_it(source, tmp_path, uninterrupted):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "prepare")])}
    command = [
        sys.executable,
        "-m",
        "lit_moss",
        "prepare",
        COUNTING,
        str(source),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--least", "2", "--batch", "3", "--shard_items", "5", "--track", "false", "--workers", "2"]
    run = subprocess.Popen([*command, "--seconds", "0.1"], env=env, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("parts/*.log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.kill()
    run.wait()
    assert killed_run(source, tmp_path / "out", "--workers", "2").returncode == 0
    assert contents(tmp_path / "out") == uninterrupted


def test_half_a_last_line_of_the_log_is_run_again(source, tmp_path, uninterrupted):
    class StopError(Exception):
        pass

    class Stopping(CountingStage):
        runs = 0

        def run(self, unit):
            Stopping.runs += 1
            if Stopping.runs == 5:
                raise StopError
            return super().run(unit)

    from lit_moss.prepare.engine import _claim
    from lit_moss.prepare.shards import plan_shards
    from lit_moss.prepare.step import Worker
    from lit_moss.prepare.storage import Storage

    whole = step(source, tmp_path / "out", least=2, batch=3)
    _claim(whole, Storage(whole.folder))
    stopping = Stopping(whole.options, Storage(whole.folder))
    shards = plan_shards(stopping, whole.sources, whole.manifest_folder, 20)
    with pytest.raises(StopError):
        Worker(whole, stopping).run(shards[0])
    (log,) = (tmp_path / "out" / "parts").glob("*.log")
    content = log.read_bytes()
    assert content.count(b"\n") == 5  # its head, and four units
    log.write_bytes(content[:-20])
    run_step(whole, Machine(shard_items=20))
    for name in ("manifest.jsonl", "rejected.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == uninterrupted[name]


def test_a_changed_line_runs_its_shard_alone(source, tmp_path):
    run_step(step(source, tmp_path / "out"), Machine(shard_items=8))
    changed = source.read_text().splitlines()
    changed[9] = json.dumps({"id": "new", "text": "abc", "kept": [9]})
    source.write_text("\n".join(changed) + "\n")
    result = run_step(step(source, tmp_path / "out"), Machine(shard_items=8))
    assert result.items_run == 8
    assert lines(tmp_path / "out" / "manifest.jsonl")[9]["id"] == "new"


def test_another_option_runs_all_again(source, tmp_path):
    run_step(step(source, tmp_path / "out"), Machine(shard_items=8))
    assert run_step(step(source, tmp_path / "out", least=3), Machine(shard_items=8)).items_run == 40
    assert all(item["letters"] >= 3 for item in lines(tmp_path / "out" / "manifest.jsonl"))
    # One that changes no result runs nothing.
    assert (
        run_step(step(source, tmp_path / "out", least=3, seconds=0.1), Machine(shard_items=8)).items_run == 0
    )


def test_damaged_parts_are_made_again(source, tmp_path):
    run_step(step(source, tmp_path / "out"), Machine(shard_items=8))
    before = contents(tmp_path / "out")
    part = tmp_path / "out" / "parts" / "part-00002.jsonl"
    part.write_bytes(part.read_bytes()[:-10])
    assert run_step(step(source, tmp_path / "out"), Machine(shard_items=8)).items_run == 8
    assert contents(tmp_path / "out") == before


def test_an_unreadable_item_of_a_batch_is_rejected_alone(source, tmp_path):
    with source.open("a") as file:
        file.writelines(json.dumps({"id": f"m{i}", "text": "abcd"}) + "\n" for i in range(80))
        file.write('{"id": "bad", "text": "unreadable"}\n{"id": "good", "text": "xy"}\n')
    result = run_step(step(source, tmp_path / "out", batch=8), Machine())
    assert result.counts.rejected == {"unreadable audio": 1}
    (rejected,) = lines(tmp_path / "out" / "rejected.jsonl")
    assert (rejected["item"]["id"], rejected["value"]) == ("bad", "bad: unreadable")
    assert lines(tmp_path / "out" / "manifest.jsonl")[-1]["id"] == "good"


def test_too_many_unreadable_items_stop_the_run_and_are_named(source, tmp_path):
    with source.open("a") as file:
        file.writelines(json.dumps({"id": f"bad{i}", "text": "unreadable"}) + "\n" for i in range(2))
    with pytest.raises(UserError, match=r"2 of 42 items are unreadable: bad0: .*; bad1.*max_bad_share"):
        run_step(step(source, tmp_path / "out"), Machine())


def test_a_folder_with_other_files_is_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError, match="was not made by prepare"):
        run_step(step(source, tmp_path / "out"), Machine())


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("[1]", r"line 41: got '\[1\]', expected a JSON object"),
        ('{"id": ', "line 41: no JSON"),
        ('{"id": "x", "text": "a", "audio_filepath": 3}', "audio_filepath is '3', expected the path"),
    ],
)
def test_lines_that_are_no_items_are_named(source, tmp_path, line, error):
    with source.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=error):
        run_step(step(source, tmp_path / "out"), Machine())


def test_paths_outside_the_root_are_refused(source, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.wav").symlink_to("/etc/hostname")
    inside = tmp_path / "root" / "a.jsonl"
    for path, is_inside in (
        ("a.wav", True),
        ("../b.wav", False),
        ("/etc/hostname", False),
        ("link.wav", False),
    ):
        inside.write_text(json.dumps({"id": "x", "text": "a", "audio_filepath": path}) + "\n")
        whole = Step("counting", COUNTING, CountingOptions(), (str(inside),), str(tmp_path / "out"),
                     str(tmp_path / "out"), root=str(tmp_path / "root"))  # fmt: skip
        if is_inside:
            run_step(whole, Machine())
        else:
            with pytest.raises(UserError, match="expected a file below the root"):
                run_step(whole, Machine())


# --- chains -------------------------------------------------------------------------------------------------


def chain(source, out, **changes) -> Chain:
    steps = {
        "count": {"stage": COUNTING, "least": 2},
        "recount": {"stage": COUNTING, "least": 4},
        "longest": {"stage": "counting.LongestStage", "input": ["count", "recount"]},
    }
    return Chain(**({"out": str(out), "steps": steps, "sources": [str(source)], "track": False} | changes))


def test_a_chain_passes_manifests_on_and_says_what_it_made(source, tmp_path, capsys):
    results = run_chain(chain(source, tmp_path / "work"))
    assert [(r.counts.items_in, r.counts.items_out) for r in results] == [(40, 34), (34, 22), (56, 1)]
    output = capsys.readouterr().out
    assert "| recount" in output
    assert "too short" in (tmp_path / "work" / "statistics.md").read_text()
    again = run_chain(chain(source, tmp_path / "work"))
    assert [r.items_run for r in again] == [0, 0, 0]


def test_a_moved_chain_still_finds_its_sounds(source, tmp_path):
    run_chain(chain(source, tmp_path / "work"))
    (tmp_path / "work").rename(tmp_path / "moved")
    for line in lines(tmp_path / "moved" / "recount" / "manifest.jsonl"):
        if path := line.get("audio_filepath"):
            assert path.startswith(("../count/audio/", "audio/"))
            assert (tmp_path / "moved" / "recount" / path).is_file()
    results = run_chain(chain(source, tmp_path / "moved"))
    assert [r.items_run for r in results] == [0, 0, 0]


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        (
            {"count": {"stage": COUNTING, "leest": 2}},
            "step count has no option leest, expected some of",
        ),
        ({"count": {"stage": COUNTING, "least": "many"}}, "step count: least is 'many'"),
        ({"vat": {}}, "no stage 'vat', expected one of vad"),
        ({"a": {"stage": "nowhere.Stage"}}, r"no stage 'nowhere.Stage' \(No module"),
        ({"count": {"stage": COUNTING}, "b.least": 3}, "b.least: no step 'b'"),
        ({"count": 3}, "step count is 3, expected its options"),
        ({"count": {"stage": COUNTING, "input": 3}}, "input is 3, expected names of steps"),
        ({}, "no steps"),
    ],
)
def test_wrong_chains_are_refused_before_anything_runs(source, tmp_path, steps, error):
    with pytest.raises(UserError, match=error):
        run_chain(chain(source, tmp_path / "work", steps=steps))
    assert not (tmp_path / "work").exists()


def test_options_of_steps_can_be_given_one_by_one(source, tmp_path):
    content = {"count": {"stage": COUNTING, "least": 2}, "count.least": 5}
    (only,) = chain_steps(chain(source, tmp_path, steps=content))
    assert only.options.least == 5


def test_the_command_line_runs_a_chain_and_records_it(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    give_database(tmp_path)
    (tmp_path / "chain.yaml").write_text(
        f"name: counting\nout: work\nsteps:\n  count: {{stage: {COUNTING}, least: 2}}\n"
    )
    words = [
        "prepare",
        "-c",
        "chain.yaml",
        "--sources",
        json.dumps([str(source)]),
        "--steps.count.least",
        "3",
    ]
    for _ in range(2):  # the second call continues the same MLflow run
        assert main(words) == 0, capsys.readouterr().err
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("counting")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["count.least"] == "3"
    assert run.data.metrics["count/items_out"] == 28
    assert run.data.metrics["count/rejected too short"] == 12


def test_the_command_line_runs_one_stage(source, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["prepare", COUNTING, str(source), "--out", out, "--least", "2", "--track", "false"]) == 0
    assert len(lines(tmp_path / "out" / "manifest.jsonl")) == 34
    assert main(["prepare", COUNTING, str(source), "--out", out, "--leest", "2"]) == 2
    assert "unknown option" in capsys.readouterr().err
    assert main(["prepare", "vat", "x"]) == 2
    assert "no stage 'vat'" in capsys.readouterr().err


# --- a cluster, a store -------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_ray_writes_the_same_bytes(source, tmp_path, uninterrupted, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "prepare")]))
    try:
        run_step(step(source, tmp_path / "out", least=2, batch=3), Machine(2, "ray", shard_items=5))
    finally:
        ray.shutdown()
    assert contents(tmp_path / "out") == uninterrupted


@pytest.fixture
def store(monkeypatch):
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import fsspec

    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.mark.nightly
def test_a_store_holds_the_same_bytes(source, tmp_path, uninterrupted, store):
    import fsspec

    system = fsspec.filesystem("s3")
    system.put_file(str(source), "bucket/texts.jsonl")
    folder = f"{store}/out"
    options = CountingOptions(least=2, batch=3)
    remote = Step(COUNTING, COUNTING, options, (f"{store}/texts.jsonl",), folder, folder)
    for expected in (40, 0):
        assert run_step(remote, Machine(shard_items=5)).items_run == expected
    system.invalidate_cache()
    names = [n.removeprefix("bucket/out/") for n in system.find("bucket/out")]
    kept = {name: system.cat(f"bucket/out/{name}") for name in names if name != "timing.json"}
    states = [json.loads(files.pop("stage.json")) for files in (kept, uninterrupted)]
    assert states[0].pop("sources") == [f"{store}/texts.jsonl"]
    states[1].pop("sources")
    assert states[0] == states[1]
    assert kept == uninterrupted
