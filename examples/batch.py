"""Answers a file of tasks as a batch job that may be killed and started again.

    python examples/batch.py tasks.jsonl answers.jsonl [--model NAME] [--batch-size 16]

Input: one task on a line, as `autottt solve` reads them. Output: one answer on a line, in the order of the tasks,
written as soon as it is known. Started again, the job keeps the answers that are there and continues after the last.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import IO

from autottt import Controller, Result, Task, read_tasks


def answered(file: Path) -> list[str]:
    """The keys of the tasks that have an answer in a file. A line that a kill has cut off is removed."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(file, len(whole))
    return [json.loads(line)["key"] for line in whole.splitlines()]


def key_of(task: Task) -> str:
    """What tells a task from others, and from one with the same id in another file."""
    return f"{task.id} {task.digest}"


def write(result: Result, output: IO[str]) -> None:
    """Appends an answer; it is on the disk when this returns."""
    facts = {
        "key": key_of(result.task), "id": result.task.id, "status": result.status, "answer": result.answer,
        "right": result.right, "strategy": result.strategy, "seconds": result.cost.seconds, "error": result.error,
    }  # fmt: skip
    output.write(json.dumps(facts) + "\n")
    output.flush()
    os.fsync(output.fileno())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model", help="folder, hub id or name in `autottt models`; default: the bundled model")
    parser.add_argument("--batch-size", type=int, default=16, help="tasks whose adapters are trained together")
    given = parser.parse_args(arguments)
    loaded = read_tasks(given.tasks)
    if loaded.problems:
        raise SystemExit("\n".join(f"{problem.where}: {problem.message}" for problem in loaded.problems))
    tasks = loaded.tasks
    keys = [key_of(task) for task in tasks]
    done = answered(given.answers)
    if done != keys[: len(done)]:
        raise SystemExit(f"{given.answers}: has answers to other tasks than {given.tasks}; give another file")
    print(f"{len(done)} of {len(tasks)} tasks were answered before")
    if len(done) == len(tasks):
        return
    controller = Controller.from_pretrained(given.model)
    with given.answers.open("a", encoding="utf-8") as output:
        results = controller.solve_many(
            tasks[len(done) :], batch_size=given.batch_size, on_result=lambda result: write(result, output)
        )
    trained = sum(result.adapted for result in results)
    print(f"{len(results)} tasks answered, {trained} with training; {sum(r.right is True for r in results)} right")


if __name__ == "__main__":
    main()
