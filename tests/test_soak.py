"""The soak resumes, counts every failure, injects faults where an exception is possible, and damages inputs by seed."""

from __future__ import annotations

import importlib
import random
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.testing import tiny_model

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))


def script(name: str) -> ModuleType:
    """A script of the soak as a module."""
    return importlib.import_module(name)


class TestSoak:
    class FailingPart:
        name, goal, unit = "fails", 5, "runs"

        def run(self, seed: int) -> object:
            return script("soak_state").Case(Counter(runs=1), ["wrong"] * (seed == 3))

    def test_a_soak_resumes_after_its_last_case_and_counts_every_failure(self, tmp_path) -> None:
        soak = script("soak")
        file = tmp_path / "fails.json"
        assert soak.soak(self.FailingPart(), file, 1, cases=2).counts == {"runs": 2, "cases": 2}
        progress = soak.soak(self.FailingPart(), file, 1)
        assert progress.next_seed == 5
        assert progress.failures == [{"seed": 3, "what": "wrong"}]
        assert soak.report_of(self.FailingPart(), progress, {})["failures"] == 1

    def test_a_fault_is_raised_at_a_line_of_the_package(self) -> None:
        solve = script("soak_solve")
        with solve.Recording() as lines:
            Recipe(rank=3)
        assert len(lines) > 10
        with pytest.raises(RuntimeError, match="at the line"), solve.LineFault(lines.place(1), self.fail) as fault:
            Recipe(rank=3)
        assert fault.acted_at.startswith("ttt_core/recipes.py:")
        with solve.LineFault(lines.place(1), self.fail) as fault:
            sum(range(3))
        assert fault.acted_at == ""

    def test_no_fault_is_raised_where_python_executes_nothing(self) -> None:
        solve = script("soak_solve")

        def block(lock: threading.Lock) -> int:
            with lock:
                len("body")
            with lock:
                try:
                    return len("body")
                finally:
                    len("body")

        solve.PACKAGE, before = str(Path(__file__).parent), solve.PACKAGE
        try:
            with solve.Recording() as lines:
                block(threading.Lock())
            for line in range(len(lines)):
                lock = threading.Lock()
                with suppress(RuntimeError), solve.LineFault(lines.place(line), self.fail):
                    block(lock)
                assert not lock.locked()
        finally:
            solve.PACKAGE = before

    def fail(self) -> None:
        raise RuntimeError("at the line")

    def test_a_failure_that_was_resolved_no_longer_counts(self, tmp_path) -> None:
        soak, state = script("soak"), script("soak_state")
        progress = state.Progress()
        progress.add(state.Case(Counter(inputs=3), ["one", "two"]), 0)
        progress.add(state.Case(Counter(inputs=3), ["three"]), 1)
        progress.save(tmp_path / "inputs.json")
        soak.main(["--state", str(tmp_path), "--resolve", "inputs", "0", "checked before"])
        report = soak.report_of(
            self.FailingPart(), state.Progress.load(tmp_path / "inputs.json"), state.read_notes(tmp_path, "inputs")
        )
        assert (report["failures"], report["unresolved_failures"]) == (3, 1)
        assert [f["resolved"] for f in report["first_failures"]] == ["checked before", "checked before", None]

    def test_whole_values_are_replaced_and_bytes_damaged_by_the_seed_only(self) -> None:
        mutations = script("soak_mutations")
        damager = mutations.Damager(b'{"rank": 4, "names": ["a", "b"]}', values_share=1)
        assert damager._spans[-1] == (0, len(damager.data))
        damaged = [damager.damaged(random.Random(seed)) for seed in range(3000)]
        assert damaged == [damager.damaged(random.Random(seed)) for seed in range(3000)]
        assert sum(value != damager.data for value in damaged) > 2700
        assert b'{"rank": NaN, "names": ["a", "b"]}' in damaged
        assert len({mutations.damaged_bytes(damager.data, random.Random(seed)) for seed in range(50)}) > 40

    def test_an_error_of_another_class_and_a_slow_reader_are_failures(self, tmp_path) -> None:
        inputs = script("soak_inputs")
        readers = script("soak_readers")

        def read(data: bytes) -> None:
            if data[:1] != b"v":
                raise KeyError(data)

        part = object.__new__(inputs.InputsPart)
        part._failures = tmp_path / "failed"
        case = part._read_block(5, {"text": readers.Reader(1, [b"valid"], read, 0)}, 40, 1.0)
        assert case.counts["inputs"] == case.counts["reader text"] == 40
        assert case.counts["read"] + len(case.failures) == 40
        assert case.failures
        assert all("KeyError" in failure for failure in case.failures)
        assert len(list((tmp_path / "failed").iterdir())) == len(case.failures)
        slow = part._read_block(5, {"text": readers.Reader(1, [b"v"], lambda data: None, 0)}, 3, -1.0)
        assert sum("took" in failure for failure in slow.failures) == 3

    def test_a_torn_line_is_no_loss_and_a_repeated_answer_is(self, tmp_path) -> None:
        kill = script("soak_kill")
        (tmp_path / "answers0.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n{"id": "a')
        assert kill._torn(tmp_path) == []
        (tmp_path / "answers0.jsonl").write_text('{"id": "a"}\n{"id": "a"}\n')
        assert kill._torn(tmp_path) == ["after a kill: answers0.jsonl has the answers of ['a', 'a']"]

    def test_a_changed_mode_and_a_changed_weight_are_detected(self) -> None:
        solve = script("soak_solve")
        model = tiny_model("gpt2")
        before, digest = solve.snapshot(model), solve.weights_digest(model)
        assert solve.snapshot(model) == before
        next(model.parameters()).data.view(-1)[0] += 1
        model.train()
        assert solve.weights_digest(model) != digest
        assert solve.snapshot(model)["modes"] != before["modes"]
