"""`autottt prepare` divides families by the published split, trains, and its adapter is a starting adapter."""

from __future__ import annotations

import pytest

from autottt.controller.cli.options import ModelOptions
from autottt.controller.cli.prepare import divided
from autottt.ttt_core.errors import TaskError
from autottt.ttt_core.sources.export import SOURCES
from autottt.ttt_core.tasks.kinds import make_task
from tests.controller.cli.commands import call, task, tasks_file


def test_families_of_a_source_have_their_published_split_and_others_that_of_their_content():
    known = SOURCES["english"].families()
    names = list(known)[:12]
    tasks = [make_task([("a", n), ("b", n)], "c", answer=n, family=f"english/{n}", id=n) for n in names]
    own = [make_task([(f"q{n}", "x"), (f"r{n}", "y")], "c", answer="x", family=f"own{n}", id=str(n)) for n in range(30)]
    training, held_out = divided([*tasks, *own])
    for name in names:
        assert (f"english/{name}" in {t.family for t in training}) == (known[name].split == "training")
    ours = [{t.family for t in side if t.family.startswith("own")} for side in (training, held_out)]
    assert min(map(len, ours)) > 3
    assert not ours[0] & ours[1]
    assert {t.family for t in divided([*own, *tasks])[0]} == {t.family for t in training}
    with pytest.raises(TaskError, match="needs the right answer of its query"):
        divided([make_task([("a", "b")], "c", family="f")])
    with pytest.raises(TaskError, match="needs the field `family`"):
        divided([make_task([("a", "b")], "c", answer="d")])


def test_families_of_one_name_in_two_sources_have_the_split_of_their_own_source():
    published = {source: SOURCES[source].families()["double"].split for source in ("english", "generated")}
    assert set(published.values()) == {"training", "test"}
    tasks = [make_task([("2", "4")], "3", answer="6", family=f"{source}/double") for source in published]
    training, held_out = divided(tasks)
    found = {t.family: "training" for t in training} | {t.family: "test" for t in held_out}
    assert found == {f"{source}/double": split for source, split in published.items()}


def test_the_adapter_is_written_and_used(tmp_path, model):
    lines = [
        task(f"f{n}", demonstrations=[{"input": [n, k], "output": [1]} for k in range(3)], queries=[
            {"input": [n, 7], "output": [1]}
        ])
        for n in range(12)
    ]  # fmt: skip
    lines.append(task("long", demonstrations=[{"input": [1] * 5000, "output": [1]}], queries=[
        {"input": [2], "output": [1]}
    ]))  # fmt: skip
    file, out = tasks_file(tmp_path, *lines), str(tmp_path / "adapter")
    options = ["--rounds", "3", "--steps", "2", "--rank", "2", "--learning-rate", "0.02"]
    code, printed, err = call("prepare", model, "--tasks", file, "--out", out, *options)
    assert code == 0, err
    assert "held-out queries right in context" in err
    assert "1 of 13 queries are left out: they do not fit in the model's context" in err
    assert f"--starting-adapter {out}" in printed
    solved = [
        "solve",
        file,
        "--model",
        model,
        "--strategy",
        "ttt_in_context",
        "--limit",
        "1",
        "--starting-adapter",
        out,
    ]
    assert call(*solved)[0] == 0
    assert call(*solved, "--read-with-adapter")[0] == 0
    assert call("solve", file, "--model", model, "--limit", "1", "--read-with-adapter")[0] == 2
    again = ["prepare", model, "--tasks", file, "--out", out, *options]
    code, _, err = call(*again, "--starting-adapter", out)
    assert code == 2
    assert "trains an adapter from new weights; leave out --starting-adapter" in " ".join(err.split())
    bare = tasks_file(tmp_path, task("bare", demonstrations=[], family="f"))
    code, _, err = call("prepare", model, "--tasks", bare, "--out", str(tmp_path / "other"), *options)
    assert code == 2
    assert "bare: training an adapter needs demonstrations" in " ".join(err.split())


def test_without_a_model_it_is_the_bundled_one(tmp_path, monkeypatch):
    asked = []

    class Loads(Exception):
        pass

    def load(options):
        asked.append(options.model)
        raise Loads

    monkeypatch.setattr(ModelOptions, "load_learner", load)
    file = tasks_file(tmp_path, *(task(f"f{n}") for n in range(12)))
    for words in ([], ["other"], ["--model", "named"]):
        with pytest.raises(Loads):
            call("prepare", *words, "--tasks", file, "--out", str(tmp_path / "adapter"))
    assert asked == [None, "other", "named"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, place):
    monkeypatch.setattr(ModelOptions, "load_learner", lambda options: pytest.fail("the model is loaded"))
    (tmp_path / "file").write_text("precious")
    file = tasks_file(tmp_path, *(task(f"f{n}") for n in range(12)))
    code, _, err = call("prepare", "--tasks", file, "--out", str(tmp_path / place))
    assert code == 2
    assert f"--out {tmp_path / place}: the folder cannot be created" in " ".join(err.split())
    assert (tmp_path / "file").read_text() == "precious"
