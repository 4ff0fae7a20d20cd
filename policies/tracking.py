"""Tracks training runs: a folder per run, and MLflow if it is installed. Knows nothing about training.

A run's folder holds `run.json` (parameters, metrics, date and versions) and a copy of the bundle. With
`pip install autottt[mlflow]` a local MLflow store in the parent folder gets the same: `mlflow ui --backend-store-uri
sqlite:///runs/policies/mlflow.db`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..ttt_core.errors import first_line
from ..ttt_core.file_writing import explained, write_whole
from .bundle import ESTIMATORS
from .bundle_card import CARD
from .report import PICTURE, REPORT, STORED
from .trained_policy import TrainedPolicy

RUN = "run.json"
EXPERIMENT = "autottt policies"


def track(policy: TrainedPolicy, bundle: Path, runs: Path, parameters: Mapping[str, Any]) -> Path:
    """Adds a run to the folder `runs`: parameters, metrics of the scorecard, and the files of the bundle.

    Returns the run's folder, named by the time (UTC); MLflow gets a run of the same name if it is installed. Raises
    `FileError` where the folder cannot be written.
    """
    with explained(runs, STORED):
        folder = _new_folder(runs)
        (folder / "bundle").mkdir()
        estimators = Path(ESTIMATORS)  # with a digest in its name where the bundle replaced another
        fitted = [file.name for file in bundle.glob(f"{estimators.stem}*{estimators.suffix}")]
        for name in (CARD, *fitted, REPORT, PICTURE):
            if (bundle / name).is_file():
                shutil.copy2(bundle / name, folder / "bundle")
    metrics = dict(_numbers("", policy.scorecard))
    parameters = {"model": policy.base_hash, "strategies": list(policy.strategies), **parameters}
    facts = {
        "parameters": parameters,
        "metrics": metrics,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("autottt", "scikit-learn", "numpy")},
    }
    write_whole(folder / RUN, json.dumps(facts, indent=1) + "\n", STORED)
    _to_mlflow(folder, parameters, metrics, runs)
    return folder


LOCK_SECONDS = 60
"""Wait for another process that stores a run at most."""
_DETAILS = ("permutation_importance", "changes_per_family", "cost_weight_curve")
"""Parts of a scorecard, or of a model's in it, with too many numbers for metrics; they are in the bundle."""
_UNSUITED = re.compile(r"[^\w\-. :/]", re.ASCII)
"""Characters that MLflow does not allow in the name of a metric."""


def _new_folder(runs: Path) -> Path:
    """A new folder, named by the time, that no other process uses."""
    while True:
        folder = runs / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in nested mappings and pairs, under its path, but those of `_DETAILS`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _DETAILS:
                yield from _numbers(f"{name}/{key}" if name else str(key), inner)
    elif isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value):
        yield f"{name}/low", float(value[0])
        yield f"{name}/high", float(value[1])
    elif isinstance(value, (int, float)):
        yield name, float(value)


def _to_mlflow(folder: Path, parameters: Mapping[str, Any], metrics: Mapping[str, float], runs: Path) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from mlflow import MlflowClient
        except ImportError:
            return
        for name in ("mlflow", "alembic"):  # after the import, which sets levels of its own
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            with FileLock(runs / ".mlflow.lock", timeout=LOCK_SECONDS):  # two processes would both make the database
                client = MlflowClient(tracking_uri=f"sqlite:///{(runs / 'mlflow.db').resolve()}")
                _log(client, folder, parameters, metrics)
        except Exception as error:  # the run is in its folder already, so a database error must not fail it
            logging.getLogger("autottt").warning(
                "MLflow could not store the run, which is complete in %s: %s", folder, first_line(error)
            )


def _log(client: Any, folder: Path, parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Writes a run with an MLflow client; its artifacts are in `mlflow/` next to the runs' folders."""
    known = client.get_experiment_by_name(EXPERIMENT)
    where = (folder.parent / "mlflow").resolve().as_uri()
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT, artifact_location=where)
    run = client.create_run(experiment, run_name=folder.name).info.run_id
    for name, value in parameters.items():
        client.log_param(run, name, value)
    for name, number in metrics.items():
        client.log_metric(run, _UNSUITED.sub("_", name), number)
    client.log_artifacts(run, str(folder / "bundle"))
    client.set_terminated(run)
