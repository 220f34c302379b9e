"""Tracking in MLflow: a run there for each training, and one above those of a sweep's trials.

    store = tracking.find(job.tracking_uri, directory)
    with tracking.start(store, directory, job, params={...}, tags={...}) as sweep:
        ...  # each trial: fit(its_job, parent_run_id=sweep.run_id), with its tracking_uri set to store.uri
        sweep.log(1, {"mean_average_precision": 0.5})

Nothing of MLflow's global state is used or changed. A server that stops answering costs a line in the log:
figures are sent in the background, and those that could not be are sent with later ones or at the end.
Neither torch nor Lightning is imported here, and MLflow only where there is a store.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.fingerprint import fingerprint
from trainer.errors import RunError
from trainer.training.mlflow_store import DATABASE, OFF, Store, sqlite_uri
from trainer.training.origin import git_commit
from trainer.training.tracker import DIRECTORY_TAG, FAILURE_TAG, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

    from trainer.data.training_data import Data
    from trainer.job.job import Job
    from trainer.runs import Run

log = logging.getLogger("trainer")

NOTE = "mlflow.json"
"""In a run's directory: which of MLflow's runs it is."""
_LONGEST_VALUE = 500  # servers of all versions take it


def find(choice: str | None, directory: Path) -> Store | None:
    """The store to track a run in, None for none.

    Args:
        choice: the store's address or "none"; None: what MLFLOW_TRACKING_URI says, or where the run was
            tracked before, or the database beside the run's directory.
        directory: the run's; need not exist yet.

    Raises:
        RunError: what a directory says of its earlier tracking cannot be read.
    """
    if choice == OFF:
        return None
    uri = choice or os.environ.get("MLFLOW_TRACKING_URI") or _read_note(directory).get("tracking_uri")
    return Store(uri or _database_beside(directory))


def start(
    store: Store | None,
    directory: Path,
    job: Job,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent_run_id: str | None = None,
) -> Tracker:
    """Begin a run in MLflow, or go on with the one that the directory names or MLFLOW_RUN_ID.

    Args:
        store: None tracks nothing.
        directory: gives the run its name and its files.
        job: names the experiment, unless there is a parent, in whose experiment the run then is.
        params: become text. MLflow keeps a parameter as it was: one that differs as a run goes on becomes a
            tag, `changed.NAME`.

    Raises:
        TrackingError: the store does not answer, or refuses.
    """
    if store is None:
        return Tracker(None, directory)
    with store.use() as client:
        run, is_new = _begin(client, store, directory, job, parent_run_id)
        origin = {**_origin(), DIRECTORY_TAG: str(directory.absolute())}
        _describe(client, run, params, {**tags, **origin})
        if not is_new:
            client.update_run(run.info.run_id, status="RUNNING")
            if FAILURE_TAG in run.data.tags:
                client.delete_tag(run.info.run_id, FAILURE_TAG)
    _write_note(directory, store, run)
    log.info("%s", _announcement(store, run))
    return Tracker(store, directory, run.info.run_id, is_new)


def start_training(
    store: Store | None,
    run: Run,
    job: Job,
    data: Data,
    versions: Mapping[str, str],
    parent_run_id: str | None = None,
) -> Tracker:
    """`start` for a single training, with its settings as parameters.

    Args:
        versions: of the libraries that shape the result, by name.
    """
    if store is None:
        return Tracker(None, run.directory)
    params = {
        "primary_metric": job.metric,
        **job.to_dict()["training_parameters"],
        "training_images": len(data.train),
        "validation_images": len(data.validation),
        "classes": len(data.classes),
    }
    tags = {"model": job.model_name, **tags_of(job, data, versions)}
    return start(store, run.directory, job, params, tags, parent_run_id)


def tags_of(job: Job, data: Data, versions: Mapping[str, str]) -> dict[str, str]:
    """What trainings and sweeps are found by."""
    return {
        "task": job.task.value,
        "data_fingerprint": fingerprint(data),
        **{f"version.{name}": version for name, version in versions.items()},
    }


def _begin(
    client: MlflowClient, store: Store, directory: Path, job: Job, parent_run_id: str | None
) -> tuple[MlflowRun, bool]:
    """The run in MLflow, and whether it is a new one."""
    noted = _read_note(directory).get("run_id")
    if noted is not None:
        run = _existing(client, noted)
        if run is not None:
            return run, False
        log.info("%s has no run %s (any more); the tracking goes on in a new one", store.shown, noted)
    given = os.environ.get("MLFLOW_RUN_ID") if parent_run_id is None else None
    if given:
        run = client.get_run(given)
        if DIRECTORY_TAG not in run.data.tags:
            return run, False
        parent_run_id = given  # holds another training already
    if parent_run_id is not None:
        experiment_id = client.get_run(parent_run_id).info.experiment_id
        tags = {"mlflow.parentRunId": parent_run_id}
    else:
        experiment_id, tags = _experiment(store, job), {}
    return client.create_run(experiment_id, run_name=directory.absolute().name, tags=tags), True


def _existing(client: MlflowClient, run_id: str) -> MlflowRun | None:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _experiment(store: Store, job: Job) -> str:
    """The experiment's id."""
    name = job.experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if name is None and (given := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return given
    return store.experiment(name or f"trainer-{job.task}")


def _describe(
    client: MlflowClient, run: MlflowRun, params: Mapping[str, Any], tags: Mapping[str, str]
) -> None:
    from mlflow.entities import Param, RunTag

    before = run.data.params
    values = {name: str(value)[:_LONGEST_VALUE] for name, value in params.items()}
    changed = {f"changed.{name}": value for name, value in values.items() if before.get(name, value) != value}
    client.log_batch(
        run.info.run_id,
        params=[Param(name, value) for name, value in values.items() if name not in before],
        tags=[RunTag(name, value) for name, value in {**tags, **changed}.items()],
    )


def _origin() -> dict[str, str]:
    """Who trains, and from which commit, under the names that MLflow's pages know."""
    tags = {"mlflow.source.name": "trainer", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError, ImportError):  # a user without a name, as in containers
        tags["mlflow.user"] = getpass.getuser()
    commit = git_commit()
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit
    return tags


def _announcement(store: Store, run: MlflowRun) -> str:
    """Where to look at the run."""
    if store.uri.startswith("sqlite:///"):
        here = f"sqlite:///{Path.cwd()}/"
        shown = "sqlite:///" + store.uri.removeprefix(here) if store.uri.startswith(here) else store.uri
        return f"tracking: mlflow ui --backend-store-uri {shlex.quote(shown)}"
    if store.uri.startswith("http"):
        page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        return f"tracking: {store.shown.rstrip('/')}/{page}"
    return f"tracking: {store.shown}, run {run.info.run_id}"


def _database_beside(directory: Path) -> str:
    return sqlite_uri(directory.absolute().parent / DATABASE)


def _read_note(directory: Path) -> dict[str, str | None]:
    path = directory / NOTE
    try:
        note = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}; without it the tracking starts anew") from error
    return note if isinstance(note, dict) else {}


def _write_note(directory: Path, store: Store, run: MlflowRun) -> None:
    """Say which run it is, whole or not at all."""
    note = {
        # The database beside is found without, also where it was moved together with the directory.
        "tracking_uri": None if store.uri == _database_beside(directory) else store.shown,
        "experiment_id": run.info.experiment_id,
        "run_id": run.info.run_id,
    }
    partial = directory / f"{NOTE}.partial"
    partial.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / NOTE)
