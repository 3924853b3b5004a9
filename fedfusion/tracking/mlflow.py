"""MLflow: a database in the run folder, or a server."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedfusion.tracking.library import Library, identity, require
from fedfusion.types import FedfusionError
from fedfusion.validation import flat

TAG = "fedfusion.run"
MOST_PARAMS = 100  # of one call


@dataclass(frozen=True)
class MLflow:
    """A run of MLflow's. Its telemetry is off.

    Parameters
    ----------
    experiment
        The MLflow experiment, which is made where there is none.
    uri
        Where it is kept: `http://host:5000`, or `sqlite:////folder/mlflow.db`, which several runs may share; null is
        `mlflow.db` in the run folder. Credentials are MLflow's own environment variables.
    """

    experiment: str = "fedfusion"
    uri: str | None = None

    def check(self) -> None:
        """Refuse to start without MLflow, or where processes with other working folders would write elsewhere."""
        require("mlflow", extra="mlflow")
        if self.uri is not None and not re.match(r"\w[\w+]*://+[^/]", self.uri):
            raise FedfusionError(
                f"tracker.uri={self.uri} is no address (give http://HOST:PORT, or a database by its whole path, as "
                "sqlite:////FOLDER/mlflow.db)"
            )
        if self.uri is not None and re.match(r"sqlite:///[^/]", self.uri):
            raise FedfusionError(
                f"tracker.uri={self.uri} names a database below the working folder (name it by its whole path, as "
                f"sqlite:///{Path(self.uri.removeprefix('sqlite:///')).resolve()})"
            )

    def open(self, run_dir: Path, config: Mapping[str, Any]) -> Library:
        """Begin a run of the name of the run folder, or continue it."""
        return Library("mlflow", partial(_Run, self, run_dir, config))


class _Run:
    def __init__(self, settings: MLflow, run_dir: Path, config: Mapping[str, Any]) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient(settings.uri or f"sqlite:///{run_dir / 'mlflow.db'}")
        home = self._experiment(settings.experiment, None if settings.uri else (run_dir / "mlflow").as_uri())
        found = self.client.search_runs([home], f"tags.`{TAG}` = '{identity(run_dir)}'")
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        self.id = self.client.create_run(home, tags={TAG: identity(run_dir)}, run_name=run_dir.name).info.run_id
        params = [Param(_name(key), str(value)) for key, value in flat(config).items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.id, params=params[start : start + MOST_PARAMS])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        """The id of an experiment, which is made where there is none."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, artifacts))
            except MlflowException:  # another run has made it meanwhile
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def last_round(self) -> int:
        return max((metric.step for metric in self.client.get_metric_history(self.id, "train_loss")), default=0)

    def log(self, values: Mapping[str, float], server_round: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_name(name), value, now, server_round) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def conclude(self, values: Mapping[str, float], server_round: int) -> None:
        self.log(values, server_round)

    def close(self, status: str) -> None:
        self.client.set_terminated(self.id, status.upper())


def _name(name: str) -> str:
    """With the characters that MLflow allows."""
    return re.sub(r"[^\w\-./ :]", "_", name)
