"""Ten questions about a run that a reader answers from its page alone, each with its key from the trace.

The text that a person sees, with nothing opened or clicked, contains every key.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autottt.controller.controller import Controller
from autottt.controller.tracing.recorder import TraceRecorder
from autottt.controller.tracing.summary import how_it_stopped, last_evaluation
from autottt.controller.tracing.trace import Trace
from autottt.ttt_core.tasks.kinds import make_task
from tests.controller.tracing.sample_traces import page

PAIRS = [
    ([1, 1, 5], [1, 1, 5, 3]),
    ([4, 4, 9, 3], [4, 4, 9, 3, 4]),
    ([0, 9, 2, 6, 6, 8, 5], [0, 9, 2, 6, 6, 8, 5, 7]),
    ([7, 8, 4, 0, 0, 5, 7], [7, 8, 4, 0, 0, 5, 7, 7]),
    ([6, 6, 8, 2, 8], [6, 6, 8, 2, 8, 5]),
]
APPEND_LENGTH = make_task(PAIRS, [3, 3, 0, 2], answer=[3, 3, 0, 2, 4], id="append_length")
REVERSE = make_task(
    [([1, 2, 3], [3, 2, 1]), ([4, 5], [5, 4]), ([7, 8, 9, 9], [9, 9, 8, 7])], [6, 2, 4], answer=[4, 2, 6], id="reverse"
)
RUNS = {"crossfit": (APPEND_LENGTH, "ttt_crossfit"), "learned": (APPEND_LENGTH, None), "in_context": (REVERSE, None)}
"""Task and strategy of each run; without a strategy the policy decides."""
Key = Callable[[Trace], list[str]]


def numbers(value: object) -> str:
    return ", ".join(map(str, value))


def alternatives(trace: Trace) -> list[str]:
    decision = trace.decisions[0]
    if not decision["utilities"]:
        return ["did not estimate the other strategies"]
    estimates = [
        f"{score:.3f} {decision['costs'][name]:.0f}x {decision['utilities'][name]:.3f}"
        for name, score in decision["scores"].items()
    ]
    best, second = (round(value, 3) for value in sorted(decision["utilities"].values(), reverse=True)[:2])
    return [*estimates, f"by {best - second:.3f} in expected utility"]


def training(trace: Trace) -> list[str]:
    trained = [attempt for attempt in trace.attempts if attempt["training_record"]]
    if not trained:
        return ["No adapter was trained or used."]
    (attempt,) = trained
    record = attempt["training_record"]
    losses = f"loss {record['losses'][0]:.3f} to {record['losses'][-1]:.3f}"
    stopped = how_it_stopped(record["stop_reason"], last_evaluation(trace, attempt["strategy"]))
    return [f"{record['steps']} training steps", stopped, losses]


def held_out(trace: Trace) -> list[str]:
    results = [a["cross_validation"] for a in trace.attempts if a["cross_validation"]]
    if results:
        return [f"{sum(r['before'])}/5 before training, {sum(r['after'])}/5 after" for r in results]
    return ["No demonstrations were held out" if trace.adaptation else "No adapter was trained or used."]


def stage(trace: Trace) -> list[str]:
    stages = trace.stages()
    name = max(stages, key=lambda each: stages[each])
    return [f"{name} ", f"{100 * stages[name] / sum(stages.values()):.1f}%"]


QUESTIONS: dict[str, Key] = {
    "Which strategies were chosen, in order?": lambda t: [" → ".join(d["strategy"] for d in t.decisions)],
    "Why was the first one chosen?": lambda t: [t.decisions[0]["reason"]],
    "What did the alternatives promise, at which cost?": alternatives,
    "What did the run cost, in seconds and compared with an in-context answer?": lambda t: [
        f"{t.result['cost']['seconds']:.3g} s" if t.seconds >= 1 else f"{1000 * t.seconds:.3g} ms",
        f"{t.result['relative_seconds']:.1f}x the seconds of the in-context answer",
    ],
    "Did training help on held-out demonstrations?": held_out,
    "Did the weights come back, and how is that known?": lambda t: [
        "Unchanged", f"{t.result['proof']['tensors']} tensors", "bytes, ", t.result["proof"]["hash"],
        "detached before the proof" if t.adaptation else "Nothing was trained in this run",
    ],
    "Is the answer right, and what is the right one?": lambda t: [
        "Right" if t.result["right"] else "Wrong", f"right answer {numbers(t.task.answer)}",
    ],
    "What did the model answer without training, and how sure was it?": lambda t: [
        numbers(t.in_context["value"]), f"token sequence probability {t.in_context['confidence']:.2f}",
        f"right with probability {t.decisions[0]['scores']['in_context']:.3f}" if t.decisions[0]["utilities"] else "",
    ],
    "How long did training go on, and why did it stop?": training,
    "Where did the time go?": stage,
}  # fmt: skip


@pytest.fixture(scope="module")
def traces(chromium) -> dict[str, Trace]:
    """A run with `ttt_crossfit`, one with what the policy chose, and one kept in context."""
    stored: list[Trace] = []

    class Target:
        def write(self, trace: Trace) -> None:
            stored.append(trace.as_stored())

    controller = Controller.from_pretrained(trace=TraceRecorder([Target()]))
    for task, strategy in RUNS.values():
        controller.solve(task, strategy=strategy)
    return dict(zip(RUNS, stored, strict=True))


def test_the_runs_are_what_the_questions_need(traces):
    assert traces["crossfit"].attempts[0]["cross_validation"]
    assert traces["learned"].adaptation == "accepted"
    assert len(traces["learned"].decisions[0]["utilities"]) > 2
    assert [attempt["strategy"] for attempt in traces["in_context"].attempts] == ["in_context"]


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("run", RUNS)
def test_a_reader_of_the_page_alone_answers_ten_questions(traces, open_page, run, width):
    text = open_page(page(traces[run]), width).text()
    if width == 400:  # where each number of a candidate has its own name
        text += text.replace("cost, estimated ", "").replace("utility ", "")
    missing = {question: [k for k in key(traces[run]) if k not in text] for question, key in QUESTIONS.items()}
    assert len(QUESTIONS) == 10
    assert not {question: keys for question, keys in missing.items() if keys}
