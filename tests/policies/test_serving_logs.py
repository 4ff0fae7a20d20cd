"""Serving: a shadow changes nothing, exploration is a known share, and what was served can be learned from."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from autottt.controller.controller import Controller
from autottt.policies import tracking
from autottt.policies.exploration import ExploringPolicy
from autottt.policies.features import NAMES, STAGE_0, Features
from autottt.policies.policy import Decision, FixedPolicy, HeuristicPolicy, LearnedPolicy
from autottt.policies.serving_logs import JUDGED, base_of, drift, outcomes_of, read_log, summary, with_right_answers
from autottt.policies.tracking import RUN, track
from autottt.policies.trained_policy import TrainedPolicy
from autottt.strategies.registry import strategies
from autottt.ttt_core.errors import PolicyError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import as_tuples
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

ALL = ["in_context", "in_context_vote", "ttt_in_context", "ttt_augmented"]
PAIRS: list[tuple[object, object]] = [([1, 2], [2, 1]), ([3, 4], [4, 3]), ([5, 6], [6, 5])]
TASKS = [make_task(PAIRS, [n, 8], answer=[8, n], id=f"t{n}", family=f"f{n}") for n in range(4)]
QUICK = Recipe(
    rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-3, max_steps=3, batch_size=2, transformations=2, views=3
)


def features(number: int, stage: int = 0) -> Features:
    values = dict.fromkeys(NAMES[stage], 0.0) | {"kind_list": 1.0, "answer_mean": -float(number)}
    return Features(stage, values)


@pytest.fixture(scope="module")
def learner() -> Learner:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(), prompt_format="compact")
    learner.loaded = replace(learner.loaded, recipes=dict.fromkeys(strategies(), QUICK))
    return learner


# --- exploration ----------------------------------------------------------------------------------------------------


def test_a_share_is_explored_and_its_chance_is_stated() -> None:
    served = ExploringPolicy(FixedPolicy("ttt_in_context"), explore=0.2)
    decisions = [served.decide(features(n), ALL) for n in range(2000)]
    explored = [d for d in decisions if d.policy_choice]
    assert len(explored) / 2000 == pytest.approx(0.2, abs=0.03)
    for name in ALL:
        chosen = [d for d in decisions if d.strategy == name]
        assert len(chosen) / 2000 == pytest.approx(chosen[0].propensity, abs=0.03)
        assert all(d.propensity == pytest.approx(0.85 if name == "ttt_in_context" else 0.05) for d in chosen)
    assert explored[0].reason.startswith("explored: drawn from 4 strategies instead of ttt_in_context (always")


def test_exploration_measures_all_features_and_is_reproducible() -> None:
    served, again = (ExploringPolicy(FixedPolicy("in_context"), explore=0.5, seed=3) for _ in range(2))
    for n in range(50):
        decision = served.decide(features(n, 1), ALL)
        assert decision == again.decide(features(n, 1), ALL)
        assert served.needs_more(features(n)) == bool(decision.policy_choice)
        assert not served.needs_more(features(n, 1))
    other = ExploringPolicy(FixedPolicy("in_context"), explore=0.5, seed=4)
    assert any(served.decide(features(n), ALL) != other.decide(features(n), ALL) for n in range(50))


def test_only_strategies_of_the_policy_are_explored_and_a_restricted_choice_is_recorded() -> None:
    class Knows(FixedPolicy):
        def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
            costs = dict.fromkeys(("in_context", "ttt_in_context", "ttt_augmented"), 2.0)
            return replace(super().decide(features, allowed, tried=tried), costs=costs)

    served = ExploringPolicy(Knows("ttt_augmented"), explore=0.3)
    for allowed, known in ((ALL, 3), (ALL[:3], 2)):
        decisions = [served.decide(features(n), allowed) for n in range(2000)]
        names = {d.strategy for d in decisions}
        assert len(names) == known
        assert "in_context_vote" not in names
        for name in names:
            chosen = [d for d in decisions if d.strategy == name]
            assert len(chosen) / 2000 == pytest.approx(chosen[0].propensity, abs=0.03)


@dataclass(frozen=True)
class Staged:
    """Knows of two strategies; keeps what is likely by the free features, and trains on all that it measures."""

    may_keep: bool = True
    name: str = "staged"

    def needs_more(self, features: Features) -> bool:
        return features.stage == 0 and features.values["answer_mean"] < -1000

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        choice = "ttt_in_context" if features.stage or not self.may_keep else "in_context"
        costs = {"in_context": 0.0, "in_context_vote": 8.0, "ttt_in_context": 60.0}
        return Decision(
            strategy=choice, difficulty=0.5, scores={}, costs=costs, utilities={}, reason=f"stage {features.stage}",
            stage=features.stage, may_keep=self.may_keep,
        )  # fmt: skip

    def card(self) -> dict[str, Any]:
        return {}


def test_the_policys_own_choice_is_that_of_what_it_would_have_measured() -> None:
    """Exploring measures all; without, the first half of the queries would have been decided by the free features."""
    served = ExploringPolicy(Staged(), explore=0.3)
    decisions = []
    for n in range(2000):
        measured = int(served.needs_more(features(n)))
        decisions.append((n, measured, served.decide(features(n, measured), ALL)))
    for n, measured, decision in decisions:
        own = "in_context" if n <= 1000 else "ttt_in_context"
        assert (decision.policy_choice or decision.strategy) == own
        assert decision.stage == measured
    for half in (decisions[:1001], decisions[1001:]):
        for name in {d.strategy for _, _, d in half}:
            chosen = [d.propensity for _, _, d in half if d.strategy == name]
            assert len(chosen) / len(half) == pytest.approx(chosen[0], abs=0.04)
            assert len({round(p, 6) for p in chosen}) == 1


def test_a_shadow_that_is_the_served_policy_never_disagrees() -> None:
    """Also where exploring measures what neither of them would have asked for."""
    served = ExploringPolicy(Staged(), shadow=Staged(), explore=0.3)
    decisions = []
    for n in range(2000):
        measured = features(n, int(served.needs_more(features(n))))
        decisions.append((measured.stage, served.decide(measured, ALL)))
    assert all((d.policy_choice or d.strategy) == d.shadow and d.shadow_had_features for _, d in decisions)
    assert sum(stage == 1 and d.shadow == "in_context" for stage, d in decisions) > 100


def test_exploration_does_not_choose_an_answer_outside_the_risk_guarantee() -> None:
    served = ExploringPolicy(Staged(may_keep=False), explore=0.5)
    decisions = [served.decide(features(n, 1), ALL) for n in range(400)]
    assert {d.strategy for d in decisions} == {"in_context_vote", "ttt_in_context"}
    assert {round(d.propensity, 6) for d in decisions if d.strategy == "in_context_vote"} == {0.25}
    alone = served.decide(features(0, 1), ["in_context"])
    assert alone.strategy in ("in_context", "ttt_in_context"), "nothing else is possible"


def test_without_exploration_the_policy_decides() -> None:
    served = ExploringPolicy(FixedPolicy("in_context"))
    assert all(served.decide(features(n), ALL).propensity == 1.0 for n in range(50))
    for share in (-0.1, 1.1):
        with pytest.raises(PolicyError, match="between 0 and 1"):
            ExploringPolicy(FixedPolicy("in_context"), explore=share)


# --- the shadow -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A policy that cannot decide."""

    name: str = "broken"

    def needs_more(self, features: Features) -> bool:
        raise ValueError("no")

    def decide(self, features: Features, allowed: Sequence[str], *, tried: Sequence[str] = ()) -> Decision:
        raise ValueError("no")

    def card(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("shadow", "says"),
    [(None, ""), (FixedPolicy("ttt_augmented"), "ttt_augmented"), (Broken(), "failed: ValueError: no")],
)
def test_a_shadow_is_heard_and_changes_nothing(shadow: Any, says: str) -> None:
    policy = HeuristicPolicy()
    served = ExploringPolicy(policy, shadow)
    for n in range(5):
        plain = policy.decide(features(n, 1), ALL)
        assert served.decide(features(n, 1), ALL) == replace(plain, shadow=says)
        assert served.needs_more(features(n)) == policy.needs_more(features(n))
    assert served.name == policy.name
    named = served.card()["served"]["shadow"]
    assert named is None if shadow is None else named.startswith(f"{shadow.name} (")


# --- logs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four queries, all explored, with another policy in the shadow."""
    file = tmp_path_factory.mktemp("log") / "answers.jsonl"
    learner.clear()
    served = ExploringPolicy(FixedPolicy("in_context"), FixedPolicy("ttt_in_context"), explore=1.0, seed=1)
    results = Controller(learner, served).solve_many(TASKS)
    file.write_text("".join(json.dumps(r.to_plain()) + "\n" for r in results))
    return file


def test_a_log_gives_the_outcomes_of_what_was_tried(log: Path, learner: Learner) -> None:
    rows = read_log([log])
    outcomes = outcomes_of(rows)
    tried = {(o.task_id, o.strategy) for o in outcomes}
    read = {(f"{t.id}#{t.digest}", "in_context") for t in TASKS}
    first = [(r, r["attempts"][0]) for r in rows]
    names = {f"{t.id}": t.digest for t in TASKS}
    assert tried == read | {(f"{r['id']}#{names[r['id']]}", a["strategy"]) for r, a in first if not a["from_cache"]}
    assert len({o.strategy for o in outcomes}) > 2
    (units, works) = ({r["id"]: r["in_context_tokens"] for r in rows}, {r["id"]: r["in_context"]["cost"] for r in rows})
    assert works["t0"]["forward_tokens"] == units["t0"]
    assert works["t1"]["forward_tokens"] < units["t1"] == units["t0"], "a prompt whose beginning was read before"
    for outcome in outcomes:
        assert outcome.base_hash == learner.base_hash
        assert outcome.task_id.endswith(f"#{outcome.digest}")
        assert bool(outcome.recipe) == (strategies()[outcome.strategy].default_recipe is not None)
        assert outcome.family == f"f{outcome.task_id[1]}"
        assert outcome.token_equivalents == outcome.forward_tokens + 2 * outcome.backward_tokens
        assert bool(outcome.answer) == (outcome.status == "answered")
        assert bool(outcome.losses) == bool(outcome.backward_tokens)
        assert 0 <= outcome.confidence <= 1 + 1e-6
        if outcome.strategy == "in_context":
            assert set(outcome.features) == set(NAMES[1])
            assert outcome.relative_cost == 1.0
            assert outcome.probe_cost > 0
        elif outcome.strategy.startswith("ttt"):
            assert outcome.relative_cost > 3


def test_a_line_that_occurs_again_counts_once(log: Path, tmp_path: Path) -> None:
    (copy := tmp_path / "copy.jsonl").write_bytes(log.read_bytes() + log.read_bytes())
    assert read_log([log, copy]) == read_log([log])
    spaced = [
        json.dumps(json.loads(line), indent=None, separators=(" ,", " : ")) for line in log.read_text().splitlines()
    ]
    copy.write_text("\n".join(spaced))
    assert read_log([log, copy]) == read_log([log])


def test_blank_lines_and_a_mark_of_the_byte_order_are_skipped(log: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other.jsonl").write_bytes(b"\xef\xbb\xbf\n" + log.read_bytes().replace(b"\n", b"\n\r\n \n"))
    assert read_log([other]) == read_log([log])
    (packed := tmp_path / "log.jsonl.gz").write_bytes(gzip.compress(log.read_bytes()))
    with pytest.raises(PolicyError, match="unpack a log that is compressed"):
        read_log([packed])


def test_the_cost_of_choosing_the_prompt_format_is_no_cost_of_the_probe(log: Path) -> None:
    (row, *_) = read_log([log])
    (measured, *_) = outcomes_of([row])
    cost = {"seconds": 0.5, "forward_tokens": 40, "backward_tokens": 0}
    total = {**row["cost"], "forward_tokens": row["cost"]["forward_tokens"] + 40}
    chosen = {**row, "cost": total, "format_choice": {**row["format_choice"], "cost": cost}}
    assert outcomes_of([chosen])[0].probe_cost == measured.probe_cost


def test_served_outcomes_know_the_adapter_that_training_started_from(log: Path) -> None:
    rows = read_log([log])
    assert {o.starting_adapter for o in outcomes_of(rows)} == {""}
    started = [{**row, "run": {"model": {"starting_adapter": "0123"}}} for row in rows]
    assert {o.starting_adapter for o in outcomes_of(started)} == {"0123"}


def test_answers_that_come_later_are_looked_up_by_id(log: Path) -> None:
    rows = [{**row, "task": {**row["task"], "answer": None}} for row in read_log([log])]
    assert outcomes_of(rows) == []
    value = rows[0]["in_context"]["value"] or [0]
    answered = with_right_answers(rows, [dataclasses.replace(TASKS[0], answer=as_tuples(value))])
    outcomes = outcomes_of(answered)
    assert {o.task_id for o in outcomes} == {f"t0#{TASKS[0].digest}"}
    assert outcomes[0].correct == float(rows[0]["in_context"]["value"] is not None)


@pytest.mark.parametrize(("comparison", "right"), [("exact", 0.0), ("ignore_case", 1.0)])
def test_answers_that_come_later_are_compared_as_their_file_says(log: Path, comparison: str, right: float) -> None:
    task = make_task([("ab", "ab"), ("cd", "cd")], "hij", answer="HIJ", comparison=comparison)
    (row, *_) = read_log([log])
    answer = {**row["in_context"], "value": "hij"}
    facts = {**row["task"], "kind": "text", "digest": task.digest, "answer": None, "comparison": "exact"}
    row |= {"task": facts, "answer": "hij", "in_context": answer}
    (known,) = with_right_answers([row], [task])
    assert summary([known], None)["accuracy"] == right
    assert outcomes_of([known])[0].correct == right
    assert with_right_answers([{**row, JUDGED: True}], [task]) == [{**row, JUDGED: True}], "its answers are marks"


def test_rows_without_all_features_or_full_costs_give_no_outcome(log: Path) -> None:
    trained = [(r, a) for r in read_log([log]) for a in r["attempts"] if a["training_record"] and not a["from_cache"]]
    row = {**trained[0][0], "attempts": [trained[0][1]]}
    assert len(outcomes_of([row])) == 2
    short = {name: row["features"][name] for name in STAGE_0}
    assert outcomes_of([{**row, "features": short}]) == []
    for changed in ({"from_cache": True}, {"training_record": {"stop_reason": "deadline"}}):
        attempt = {**row["attempts"][0], **changed}
        assert [o.strategy for o in outcomes_of([{**row, "attempts": [attempt]}])] == ["in_context"]


def test_lines_that_are_no_log_are_named(tmp_path: Path, log: Path) -> None:
    file = tmp_path / "other.jsonl"
    for text, says in (
        ("{", "1: expected a result, as each line of"),
        ('{"id": 1}', "1: lacks status, answer"),
        ("[]", "1: lacks id"),
    ):
        file.write_text(text + "\n")
        with pytest.raises(PolicyError, match=says):
            read_log([log, file])
    refused = {**json.loads(log.read_text().splitlines()[0]), "status": "refused"}
    file.write_text(json.dumps(refused) + "\n")
    assert read_log([file]) == []
    file.write_bytes(log.read_bytes() + "é".encode("latin-1"))
    with pytest.raises(PolicyError, match=r"other\.jsonl: expected a text in UTF-8"):
        read_log([file])
    file.write_text("")
    assert read_log([file]) == []
    file.write_text(log.read_text() + '{"id": "torn", "sta')
    assert len(read_log([file])) == 4
    file.write_text(json.dumps({**refused, "status": "answered", "features_version": 1}) + "\n")
    with pytest.raises(PolicyError, match="features of version 1; this package"):
        read_log([file])
    file.write_text(json.dumps({**refused, "log_version": 1}) + "\n")
    with pytest.raises(PolicyError, match=r"a log in version 1 of the format.*autottt solve TASKS --trace"):
        read_log([file])


@pytest.mark.parametrize("value", [None, [], {}, "text", 10**400, [[]], {"a": [1]}])
def test_a_line_with_a_field_of_another_type_is_refused_with_its_number_or_used(
    tmp_path: Path, log: Path, value: Any
) -> None:
    first = json.loads(log.read_text().splitlines()[0])
    file, refused = tmp_path / "changed.jsonl", set()
    for name in first.keys() & {
        "attempts", "in_context", "features", "cost", "proof", "task", "decision", "seed", "format_choice",
    }:  # fmt: skip
        file.write_text(log.read_text() + json.dumps({**first, name: value}) + "\n")
        if (name, value) == ("format_choice", {}):
            assert len(read_log([file])) == 5, "nothing was compared"
            continue
        with pytest.raises(PolicyError, match=r"changed\.jsonl:5: not a result"):
            read_log([file])
        refused.add(name)
    assert len(refused) == (8 if value == {} else 9)


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5000, '{"id"'])
def test_a_line_that_cannot_be_decoded_is_refused_with_its_number(tmp_path: Path, log: Path, line: str) -> None:
    file = tmp_path / "changed.jsonl"
    file.write_text(log.read_text() + line + "\n")
    with pytest.raises(PolicyError, match=r"changed\.jsonl:5: expected a result.*not JSON.*Remove the line"):
        read_log([file])
    with pytest.raises(PolicyError, match="the log cannot be read"):
        read_log([tmp_path])


def test_logs_of_several_models_are_refused(log: Path, learner: Learner) -> None:
    rows = read_log([log])
    assert base_of(rows) == learner.base_hash
    for some, says in (([*rows, {**rows[0], "proof": {"hash": "other"}}], "2 models"), ([], "hold no answered query")):
        with pytest.raises(PolicyError, match=says):
            base_of(some)


def test_served_decisions_are_summarised(log: Path) -> None:
    report = summary(read_log([log]), None)
    assert report["queries"] == report["with_known_answer"] == report["explored"] == 4
    assert 0 <= report["accuracy"] <= 1
    drawn = Counter(row["decision"]["strategy"] for row in read_log([log]))
    assert report["shares"] == {name: count / 4 for name, count in drawn.items()}
    assert set(drawn) != {"in_context"}
    assert report["policy_shares"] == {"in_context": 1.0}, "the policy's own choice, whatever was drawn"
    assert report["shadow"]["queries"] == 4
    assert report["shadow"]["disagreements"] == {"in_context -> ttt_in_context": 4}
    assert report["shadow"]["lacked_features"] == report["shadow"]["failed"] == 0


# --- drift ----------------------------------------------------------------------------------------------------------


def policy_of(rows: np.ndarray) -> TrainedPolicy:
    """A policy that knows how features were distributed in training, and little else."""
    deciles = np.quantile(rows, np.arange(1, 10) / 10, axis=0).T
    below = tuple(map(tuple, (rows[:, :, None] <= deciles).mean(axis=0).tolist()))
    edges = tuple(map(tuple, deciles.tolist()))
    free = rows[:, : len(STAGE_0)]
    return TrainedPolicy(
        "base", ("in_context",), {}, {}, {"": (1.0,), "list": (1.0,)}, 0.1, 1.0,
        ("in_context",), tuple(free.min(0).tolist()), tuple(free.max(0).tolist()), edges, below, (), (), 0,
    )  # fmt: skip


def served_rows(rows: np.ndarray) -> list[dict[str, Any]]:
    decision = {"strategy": "in_context", "policy_choice": "", "shadow": "", "shadow_had_features": True}
    return [
        {"id": str(n), "features": dict(zip(NAMES[1], row.tolist(), strict=True)), "decision": decision,
         "answer": [1], "task": {"kind": "list", "answer": [1], "digest": str(n)}}
        for n, row in enumerate(rows)
    ]  # fmt: skip


def test_drift_is_seen_where_it_is_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    train, new = rng.normal(size=(1000, len(NAMES[1]))), rng.normal(size=(100, len(NAMES[1])))
    train[:, 0], new[:, 0] = 3.0, 3.0
    place = STAGE_0.index("answer_mean")
    report = summary(served_rows(new), policy_of(train))
    assert report["drifted"] == []
    assert report["out_of_distribution_share"] == 0.0
    assert report["accuracy"] == 1.0
    new[:, place] += 1.5
    report = summary(served_rows(new), policy_of(train))
    assert report["drifted"] == ["answer_mean"]
    new[:, : len(STAGE_0)] += 20
    assert summary(served_rows(new), policy_of(train))["out_of_distribution_share"] == 1.0


def test_the_stability_index_is_what_its_definition_gives() -> None:
    rows = np.tile(np.arange(10.0)[:, None], (1, len(NAMES[1])))
    new = served_rows(np.tile(np.array([[0.0], [0.0], [9.0], [9.0]]), (1, len(NAMES[1]))))
    (one, *_) = drift(policy_of(rows), new)
    shares = np.array([2.5] + [0.5] * 8 + [2.5]) / 9
    assert one.index == pytest.approx(((shares - 0.1) * np.log(shares / 0.1)).sum())
    assert not one.drifted
    assert (one.median, one.training_median) == (4.5, 4.5)


@pytest.mark.parametrize("queries", [5, 20, 60])
def test_few_queries_like_those_in_training_are_rarely_said_to_have_drifted(queries: int) -> None:
    rng = np.random.default_rng(1)
    policy = policy_of(rng.normal(size=(500, len(NAMES[1]))))
    said = [
        any(d.drifted for d in drift(policy, served_rows(rng.normal(size=(queries, len(NAMES[1])))))) for _ in range(12)
    ]
    assert sum(said) <= 4


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_is_tracked_with_its_metrics_and_its_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "card.json").write_text("{}")
    card = {
        "arms": {"policy": {"accuracy": 0.5}},
        "gain": {"interval_90": [0.1, 0.2]},
        "permutation_importance": {"x": 1.0},
    }
    policy = dataclasses.replace(policy_of(np.zeros((3, len(NAMES[1])))), scorecard=card)
    folders = [track(policy, bundle, tmp_path / "runs", {"seed": seed}) for seed in range(2)]
    assert folders[0] < folders[1]
    facts = json.loads((folders[1] / RUN).read_text())
    assert facts["parameters"] == {"model": "base", "strategies": ["in_context"], "seed": 1}
    assert facts["metrics"] == {"arms/policy/accuracy": 0.5, "gain/interval_90/low": 0.1, "gain/interval_90/high": 0.2}
    assert (folders[1] / "bundle" / "card.json").read_text() == "{}"


def test_mlflow_gets_the_run_where_it_is_installed(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "card.json").write_text("{}")
    policy = dataclasses.replace(policy_of(np.zeros((3, len(NAMES[1])))), scorecard={"arms": {"x": 0.5}})
    details = {"changes_per_family": {"lists/a>b": 0.1}, "domains": {"sort_by>drop": 0.25}}
    policy = dataclasses.replace(policy, scorecard={**policy.scorecard, "models": {"m": details}})
    folder = track(policy, bundle, tmp_path / "runs", {"seed": 7})
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("autottt policies")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    assert run.data.params["seed"] == "7"
    assert run.data.metrics == {"arms/x": 0.5, "models/m/domains/sort_by_drop": 0.25}
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["card.json"]


def test_mlflow_is_given_one_run_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bundle").mkdir()
    policy = policy_of(np.zeros((3, len(NAMES[1]))))
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0)
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / ".mlflow.lock"):
        folder = track(policy, tmp_path / "bundle", tmp_path / "runs", {})
    assert not (tmp_path / "runs" / "mlflow.db").exists()
    assert f"MLflow could not store the run, which is complete in {folder}" in caplog.text


def test_without_mlflow_the_folder_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    (tmp_path / "bundle").mkdir()
    policy = policy_of(np.zeros((3, len(NAMES[1]))))
    assert (track(policy, tmp_path / "bundle", tmp_path / "runs", {}) / RUN).is_file()
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_cost_weight_of_the_callers_own() -> None:
    cheap, dear = (Controller.from_pretrained(cost_weight=weight).policy for weight in (0.0, 1.0))
    for policy, strategy in ((cheap, "ttt_augmented"), (dear, "in_context")):
        assert isinstance(policy, LearnedPolicy)
        utilities = policy.trained.utilities(np.array([[0.2, 0.2, 0.2, 0.4]]), np.array([[0.0, 9.0, 100.0, 200.0]]))
        names = policy.trained.strategies
        assert names[int(utilities[0].argmax())] == strategy
    for odd in (-1.0, float("nan"), float("inf")):
        with pytest.raises(PolicyError, match="cost weight"):
            Controller.from_pretrained(cost_weight=odd)
    with pytest.raises(PolicyError, match="only a learned policy"):
        Controller.from_pretrained(strategy="in_context", cost_weight=0.1)
