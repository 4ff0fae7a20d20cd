"""Runs evaluation harnesses and a command-line client against `autottt serve`, each unchanged: `make check-clients`.

Outside `make test`, because their packages are large. They are installed, pinned, into an environment in a temporary
folder (`--environment` keeps it); nothing needs a network afterwards. Exits with 1 where a client sees a wrong answer:
lm-eval and inspect-ai exit with 0 then.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from environments import Environment, running_server

PACKAGES = ("lm-eval[api]==0.4.13", "inspect-ai==0.3.285", "llm==0.36", "openai==3.57.0")
MODEL = "autottt-bundled"
SHOTS, TESTS = 4, 6
TASK = """\
task: reverse
dataset_path: json
dataset_kwargs:
  data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}
fewshot_split: train
test_split: test
output_type: generate_until
doc_to_text: "{{{{input}}}}"
doc_to_target: "{{{{output}}}}"
target_delimiter: " "
generation_kwargs: {{until: ["\\n"], max_gen_toks: 32}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
INSPECT = """\
import json
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser
from inspect_ai.scorer import exact

train, test = ([json.loads(line) for line in open(f"{name}.jsonl")] for name in ("train", "test"))
turns = {"input": ChatMessageUser, "output": ChatMessageAssistant}
shots = [turn(content=row[name]) for row in train for name, turn in turns.items()]
samples = [Sample(input=[*shots, ChatMessageUser(content=row["input"])], target=row["output"]) for row in test]
task = Task(dataset=MemoryDataset(samples), scorer=exact())
(log,) = eval(task, model="openai-api/autottt/MODEL", log_dir="logs", display="none")
log = read_eval_log(log.location)
errors = [sample.error.message for sample in log.samples if sample.error]
usage = sum(sample.output.usage.total_tokens for sample in log.samples)
means = [metric.value for score in log.results.scores for name, metric in score.metrics.items() if name == "mean"]
print(json.dumps({"status": log.status, "errors": errors, "tokens": usage, "mean": means[0]}))
"""


class Clients:
    """The clients, in a folder with a task: reverse a list of digits."""

    def __init__(self, url: str, environment: Environment, folder: Path) -> None:
        self.url, self.environment, self.folder = url, environment, folder
        write_tasks(folder)

    def run(self, program: str, *arguments: str, expect: int = 0, **variables: str) -> str:
        """What a client prints. Raises `AssertionError` for another exit code."""
        return self.environment.run(program, *arguments, folder=self.folder, expect=expect, variables=variables)

    def decisions(self) -> dict[str, int]:
        """How often the server has decided on each strategy so far."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        decisions = [line for line in lines if line.startswith("autottt_decisions_total{")]
        return {line.split('"')[1]: int(float(line.split()[-1])) for line in decisions}

    def lm_eval(self, model: str) -> float:
        """The exact match of lm-eval with few-shot examples as turns."""
        out = self.folder / f"lm_eval_{model}"
        settings = f"model={model},base_url={self.url}/v1/chat/completions,num_concurrent=2,max_retries=2"
        self.run(
            "lm_eval", "--model", "local-chat-completions", "--model_args", settings, "--tasks", "reverse",
            "--include_path", str(self.folder), "--num_fewshot", str(SHOTS), "--apply_chat_template",
            "--fewshot_as_multiturn", "True", "--output_path", str(out),
        )  # fmt: skip
        (results,) = out.rglob("results_*.json")
        return float(json.loads(results.read_text())["results"]["reverse"]["exact_match,none"])

    def inspect_ai(self) -> dict[str, object]:
        """What inspect-ai's provider for servers with OpenAI's API has logged."""
        (self.folder / "inspect_task.py").write_text(INSPECT.replace("MODEL", f"{MODEL}-fewshot"))
        variables = {"AUTOTTT_API_KEY": "none", "AUTOTTT_BASE_URL": f"{self.url}/v1"}
        printed = self.run("python", "inspect_task.py", **variables).splitlines()
        report: dict[str, object] = json.loads(next(line for line in printed if line.startswith('{"status"')))
        return report

    def llm(self, *options: str, expect: int = 0) -> str:
        """What `llm` prints."""
        home = self.folder / "llm"
        home.mkdir(exist_ok=True)
        entry = f'- model_id: local\n  model_name: {MODEL}\n  api_base: "{self.url}/v1"\n'
        (home / "extra-openai-models.yaml").write_text(entry)
        return self.run("llm", "-m", "local", "hello", *options, expect=expect, LLM_USER_PATH=str(home)).strip()


def write_tasks(folder: Path) -> None:
    """The task as files: reverse a list of digits."""
    rng = random.Random(0)
    for name, count in (("train", SHOTS), ("test", TESTS)):
        rows = [[rng.randrange(10) for _ in range(rng.randrange(2, 6))] for _ in range(count)]
        lines = [json.dumps({"input": spaced(row), "output": spaced(row[::-1])}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "reverse.yaml").write_text(TASK.format(folder=folder))


def spaced(row: list[int]) -> str:
    return " ".join(map(str, row))


def check_lm_eval(clients: Clients) -> str:
    before = clients.decisions()
    score = clients.lm_eval(f"{MODEL}-fewshot")
    assert score == 1.0, f"exact match {score}"
    conversations = clients.decisions().get("not_few_shot", 0)
    assert conversations == before.get("not_few_shot", 0), "no turn was a demonstration"
    clients.lm_eval(MODEL)
    assert clients.decisions()["not_few_shot"] == conversations + TESTS, "turns were demonstrations without a mark"
    return f"exact match {score} with {MODEL}-fewshot; with {MODEL} all {TESTS} chats are not_few_shot"


def check_inspect_ai(clients: Clients) -> str:
    report = clients.inspect_ai()
    assert report["status"] == "success", report
    assert not report["errors"], report
    assert report["mean"] == 1.0, report
    return f"accuracy {report['mean']}, {report['tokens']} tokens"


def check_llm(clients: Clients) -> str:
    streamed = clients.llm("-o", "max_tokens", "5")
    whole = clients.llm("-o", "max_tokens", "5", "--no-stream")
    assert streamed == whole, (streamed, whole)
    assert whole
    refused = clients.llm("-o", "logit_bias", '{"5": 1}', expect=1)
    assert "logit_bias: is not supported" in refused, refused
    return f"{whole!r} streamed and whole; shows the message of a refusal"


CHECKS: dict[str, Callable[[Clients], str]] = {
    "lm_eval --model local-chat-completions": check_lm_eval,
    "inspect-ai, openai-api": check_inspect_ai,
    "llm": check_llm,
}


def main() -> int:
    """Prints what each client saw; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, help="folder of the environment, which is kept and used again")
    given = parser.parse_args().environment
    failures = 0
    with tempfile.TemporaryDirectory() as temporary, running_server() as url:
        folder = Path(temporary)
        environment = Environment((given or folder / "environment").resolve(), PACKAGES)
        clients = Clients(url, environment, folder)
        for name, check in CHECKS.items():
            try:
                print(f"ok      {name}: {check(clients)}", flush=True)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failures += 1
                print(f"FAILED  {name}: {error}", flush=True)
    return min(failures, 1)


if __name__ == "__main__":
    raise SystemExit(main())
