"""`flwr run` on the SuperLink of a deployment, whose SuperNodes are devices."""

import contextlib
import json
import shutil
import subprocess
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from fedfusion.federation.flower import app_folder, environment_of, follow, raised, size_of, tool
from fedfusion.federation.tls import reach
from fedfusion.types import FedfusionError, RunFailed

SILENT = "No heartbeat received from the task"  # what Flower says of a run whose server app died
ASK_S = 10.0  # between two looks at the state of a run: each is a process of Flower's
PATIENCE_S = 300.0  # how long a SuperLink may be away
ANSWER_S = 60.0  # what Flower's command line has to answer
CONNECTION = "ours"  # the name of the SuperLink in the deployment's config.toml


@dataclass(frozen=True)
class Devices:
    """Run on devices: the SuperLink and the SuperNodes that `fedfusion deploy up` has started.

    The server app runs beside the SuperLink and writes the run folder, so this runs on the same machine. A server app
    that dies is started again and continues after the last round; a SuperLink that is started again is waited for.

    Parameters
    ----------
    home
        Folder of the deployment.
    restarts
        How often a server app that died is started again.
    """

    home: str = "deploy"
    restarts: int = 2

    simulated: ClassVar = False  # every node hosts the clients of its own part

    def __post_init__(self) -> None:
        if self.restarts < 0:
            raise FedfusionError(f"federation.restarts must be at least 0, got {self.restarts}")

    def check(self) -> None:
        """Refuse to start where no SuperLink answers that the deployment's authority has certified."""
        file = self._flower / "config.toml"
        if not file.is_file():
            raise FedfusionError(
                f"there is no deployment in federation.home={self.home} (make and start one: fedfusion deploy init, "
                "fedfusion deploy up)"
            )
        connection = tomllib.loads(file.read_text())["superlink"][CONNECTION]
        reach(connection["address"], Path(connection["root-certificates"]))

    def launch(self, cfg: DictConfig) -> None:
        """Submit the run, follow it, and submit it again where the server app died."""
        from fedfusion.config import build, to_json

        experiment = build(cfg)
        run_dir = Path(str(experiment.run_dir)).resolve()
        results = run_dir / "results.json"
        results.unlink(missing_ok=True)
        sent = OmegaConf.merge(cfg, {"federation": {"home": Devices.home}})  # where it lies is nobody's concern
        assert isinstance(sent, DictConfig)
        app = app_folder(run_dir / ".flower", to_json(sent))
        try:
            for attempt in range(1, self.restarts + 2):
                run = self._attempt(app, run_dir, experiment.rounds)
                if results.is_file():
                    return
                if not run.died() or attempt > self.restarts:
                    break
                print(f"{run.reason()}; it is started again ({attempt} of federation.restarts={self.restarts})")
            raise RunFailed(
                f"the run on the devices ended without a result: {run.reason()}; {last_round(run_dir, self.home)}"
            )
        finally:
            shutil.rmtree(run_dir / ".flower", ignore_errors=True)

    @property
    def _flower(self) -> Path:
        return Path(self.home).resolve() / ".flower"

    def _attempt(self, app: Path, run_dir: Path, rounds: int) -> "Submitted":
        """Submit the run once and follow it to its end."""
        environment = environment_of(self._flower)
        submitted = flwr(["run", str(app), CONNECTION, "--run-config", str(app.parent / "run.toml")], environment)
        run = Submitted(str(submitted["run-id"]), run_dir / "run.log", environment)
        try:
            follow(run_dir, rounds, run.ended)
        finally:
            run.close(stop=not (run_dir / "results.json").is_file())
        return run


class Submitted:
    """A run on a SuperLink: its state, and its log, which goes on to run.log.

    Parameters
    ----------
    run_id
        As Flower names it.
    log
        Where its log is appended to.
    environment
        Of Flower's command line.
    """

    def __init__(self, run_id: str, log: Path, environment: Mapping[str, str]) -> None:
        self.run_id, self.log, self.environment = run_id, log, environment
        self.since, self.asked = size_of(log), time.monotonic()
        self.answered, self.state, self.details = time.monotonic(), "pending", ""
        self.stream = self._streamed()

    def ended(self) -> bool:
        """Whether Flower says so, or has not been there for too long; asked every few seconds."""
        if time.monotonic() - self.asked < ASK_S:
            return self.state.startswith("finished")
        try:
            (found,) = flwr(["list", CONNECTION, "--run-id", self.run_id], self.environment)["runs"]
        except FedfusionError:
            self.asked = time.monotonic()
            return self.asked - self.answered > PATIENCE_S
        self.state, self.details = found["status"], found["status-details"]
        self.answered = self.asked = time.monotonic()
        over = self.state.startswith("finished")
        if self.stream.poll() is not None and not over:  # the SuperLink was away
            self.stream = self._streamed()
        return over

    def close(self, stop: bool) -> None:
        """Let the log come to its end; `stop` a run that goes on."""
        if stop and not self.state.startswith("finished"):
            with contextlib.suppress(FedfusionError):
                flwr(["stop", self.run_id, CONNECTION], self.environment)
        if self.state.startswith("finished"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stream.wait(ASK_S)
        self.stream.terminate()
        self.stream.wait()

    def died(self) -> bool:
        """Whether the server app ended of something else than an error of ours, which would only happen again.

        Its process was killed, or the SuperLink went away while it was sending.
        """
        return self.state == "finished:failed" and not raised(self.log, self.since)

    def reason(self) -> str:
        """Why there are no results."""
        if errors := raised(self.log, self.since):
            return f"{errors[-1]} ({self.log})"
        if not self.state.startswith("finished"):
            return f"no SuperLink has answered for {PATIENCE_S:g} s"
        return "the server app died" if SILENT in self.details else f"{self.state}, {self.details} ({self.log})"

    def _streamed(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as file:
            file.truncate(self.since)  # each stream begins with the run
            command = [tool("flwr"), "log", self.run_id, CONNECTION, "--stream"]
            return subprocess.Popen(command, env=dict(self.environment), stdout=file, stderr=subprocess.STDOUT)


def flwr(arguments: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What Flower's command line answers.

    Raises
    ------
    FedfusionError
        With its own words, where it has no success, or no answer within `ANSWER_S`.
    """
    command, what = [tool("flwr"), *arguments, "--format", "json"], " ".join(["flwr", *arguments])
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=dict(environment), timeout=ANSWER_S)
    except subprocess.TimeoutExpired as error:
        raise FedfusionError(f"{what} did not answer within {ANSWER_S:g} s") from error
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise FedfusionError(f"{what}: {(done.stderr or done.stdout).strip() or 'no answer'}") from error
    if not answer.get("success"):
        raise FedfusionError(f"{what}: {str(answer.get('error-message')).strip().splitlines()[-1]}")
    return answer


def last_round(run_dir: Path, home: str) -> str:
    """The last checkpoint of a run, and how to go on from it on the deployment in `home`."""
    rounds = sorted((run_dir / "checkpoints").glob("round-*"))
    if not rounds:
        return "no round was finished"
    command = f"fedfusion deploy run --dir {home} --resume {run_dir}"
    return f"the last checkpoint is {rounds[-1]}; continue with: {command}"
