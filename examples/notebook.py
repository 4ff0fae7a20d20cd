"""A tour with SmolLM2 in cells, for VS Code, Jupyter (jupytext) or as a program:

    autottt models fetch smollm2-135m
    python examples/notebook.py [bundled]

With `bundled` it uses the model that ships with the package.
"""

# %% The model. `autottt models fetch` has downloaded it; nothing else needs a network.
from __future__ import annotations

import sys
from typing import Any

from autottt import ChatAutottt, Controller, FixedPolicy, make_task

MODEL = None if "bundled" in sys.argv else "smollm2-135m"
controller = Controller.from_pretrained(MODEL, budget="400x")
print(f"{controller.learner.loaded.name}: policy {controller.policy.name}, {controller.learner.base_hash[:12]}")

# %% A task: demonstrations and a query. In a notebook a task and a result show themselves (`task`, `result`).
task = make_task(
    [("cat", "the cat!"), ("dog", "the dog!"), ("river", "the river!"), ("lamp", "the lamp!")],
    "garden",
    answer="the garden!",
)

# %% What the controller would do, without doing it.
decision, proof = controller.decide(task)
print(f"decision: {decision.strategy}, difficulty {decision.difficulty:.2f}: {decision.reason}")

# %% In context, and with training: the same model, which is unchanged afterwards.
for strategy in ("in_context", "ttt_direct"):
    result = controller.solve(task, strategy=strategy)
    print(f"{result.strategy}: {result.answer!r}, right: {result.right}, {result.cost.seconds:.1f} s")
assert result.proof
assert result.proof.hash == proof.hash

# %% The losses of the training, as they fall.
steps: list[dict[str, Any]] = []
controller.learner.adapters.cache.clear()
controller.solve(
    task, strategy="ttt_direct", on_event=lambda event: steps.append(event) if event["event"] == "step" else None
)
print(f"loss of {len(steps)} steps: {' '.join(format(step['loss'], '.2f') for step in steps)}")

# %% The same as a chat model of LangChain: marked turns, or the argument `demonstrations`, are examples to learn from.
chat = ChatAutottt(controller=Controller(controller.learner, FixedPolicy("in_context")))
message = chat.invoke("garden", demonstrations=[(pair.input, pair.output) for pair in task.demonstrations])
print(f"chat: {message.text!r} ({message.response_metadata['decision']}, {message.usage_metadata})")

# %% A chat that marks no demonstrations is answered by the base model; nothing is trained.
print(chat.invoke("What is a garden?", max_tokens=16).response_metadata["decision"])
