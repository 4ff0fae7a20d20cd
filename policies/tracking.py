"""Keeps track of training runs: a folder each, and MLflow where it is installed. Knows nothing about training.

A run's folder holds `run.json` (parameters, metrics, when and with which versions) and a copy of the bundle. With
`pip install autottt[mlflow]` the same goes to a local MLflow store in the folder above: `mlflow ui --backend-store-uri
sqlite:///runs/policies/mlflow.db`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .bundle import CARD, HEADS
from .report import PICTURE, REPORT
from .trained import TrainedPolicy

RUN = "run.json"
EXPERIMENT = "autottt policies"


def track(policy: TrainedPolicy, bundle: Path, runs: Path, parameters: Mapping[str, Any]) -> Path:
    """Adds a run to the folder `runs`: what was trained with which parameters, how good it is, and the bundle's files.

    Returns the run's folder, named by the time (UTC); MLflow gets a run of the same name where it is installed.
    """
    folder = _new_folder(runs)
    (folder / "bundle").mkdir()
    for name in (CARD, HEADS, REPORT, PICTURE):
        if (bundle / name).is_file():
            shutil.copy2(bundle / name, folder / "bundle")
    metrics = dict(_numbers("", {k: v for k, v in policy.scorecard.items() if k not in _DETAILS}))
    parameters = {"model": policy.base_hash, "strategies": list(policy.strategies), **parameters}
    facts = {
        "parameters": parameters,
        "metrics": metrics,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("autottt", "scikit-learn", "numpy")},
    }
    (folder / RUN).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _to_mlflow(folder, parameters, metrics, runs)
    return folder


_DETAILS = ("importance", "families_gained", "prices")
"""Of a scorecard: too many numbers to be metrics. They are in the bundle."""


def _new_folder(runs: Path) -> Path:
    """A folder that no other process has, named by the time."""
    while True:
        folder = runs / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in nested mappings and pairs, under the path that leads to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}" if name else str(key), inner)
    elif isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value):
        yield f"{name}/low", float(value[0])
        yield f"{name}/high", float(value[1])
    elif isinstance(value, (int, float)):
        yield name, float(value)


def _to_mlflow(folder: Path, parameters: Mapping[str, Any], metrics: Mapping[str, float], runs: Path) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from mlflow import MlflowClient
        except ImportError:
            return
        try:
            _log(MlflowClient(tracking_uri=f"sqlite:///{(runs / 'mlflow.db').resolve()}"), folder, parameters, metrics)
        except Exception as error:  # whatever a database makes of itself: the folder holds the run already
            logging.getLogger("autottt").warning("MLflow did not take the run %s: %s", folder.name, error)


def _log(client: Any, folder: Path, parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Writes a run with an MLflow client; its files lie beside the runs' folders."""
    known = client.get_experiment_by_name(EXPERIMENT)
    where = (folder.parent / "mlflow").resolve().as_uri()
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT, artifact_location=where)
    run = client.create_run(experiment, run_name=folder.name).info.run_id
    for name, value in parameters.items():
        client.log_param(run, name, value)
    for name, number in metrics.items():
        client.log_metric(run, name, number)
    client.log_artifacts(run, str(folder / "bundle"))
    client.set_terminated(run)
