"""Starts a server, asks it as OpenAI's clients do, shows training as it happens, and stops it.

    python examples/serve_and_ask.py [--model NAME]

Arguments are passed on to `autottt serve`.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from openai import OpenAI

EXAMPLES = [("3 1 4", "4 1 3"), ("2 7", "7 2"), ("5 0 8", "8 0 5"), ("9 9 1 6", "6 1 9 9")]
QUERY = "1 6 8"


def main() -> None:
    command = [sys.executable, "-m", "autottt", "serve", "--port", "0", "--trace-store", "off", *sys.argv[1:]]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        first = server.stderr.readline()  # "listening on URL; loading ..."
        if "listening on " not in first:
            raise SystemExit(first + server.stderr.read())
        # While the model is loaded the server answers 503 and when to try again, which the client does by itself.
        with OpenAI(base_url=f"{first.split()[2].rstrip(';')}/v1", api_key="none", max_retries=30) as client:
            ask(client)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
        if server.stderr is not None:
            server.stderr.close()


def ask(client: OpenAI) -> None:
    """Asks for the decision of the controller, and for an answer after training."""
    model = next(name.id for name in client.models.list() if name.id.endswith("-fewshot"))
    turns = [turn for pair in EXAMPLES for turn in zip(("user", "assistant"), pair, strict=True)]
    messages = [{"role": role, "content": text} for role, text in [*turns, ("user", QUERY)]]

    answer = client.chat.completions.create(model=model, messages=messages)  # type: ignore[arg-type]
    facts = (answer.model_extra or {})["autottt"]
    print(f"{QUERY} -> {answer.choices[0].message.content}   ({facts['strategy']}: {facts['reason']})")

    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, extra_body={"strategy": "ttt_in_context"}  # type: ignore[arg-type]
    )  # fmt: skip
    for chunk in stream:
        progress = (chunk.model_extra or {}).get("autottt", {})
        if progress.get("event") == "step":
            print(f"step {progress['step']} of at most {progress['max_steps']}: loss {progress['loss']:.3f}")
        if chunk.choices and chunk.choices[0].delta.content:
            print(f"{QUERY} -> {chunk.choices[0].delta.content}   (after training)")
        if progress.get("proof"):
            print(f"the base model is what was loaded: {progress['proof']['tensors']} tensors checked")


if __name__ == "__main__":
    main()
