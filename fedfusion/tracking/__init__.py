"""Who is told about each round: the terminal and `metrics.jsonl` always, a tracking library where one is chosen."""

from fedfusion.tracking.jsonl import Jsonl
from fedfusion.tracking.mlflow import MLflow
from fedfusion.tracking.protocol import Tracker
from fedfusion.tracking.tensorboard import TensorBoard
from fedfusion.tracking.terminal import Terminal
from fedfusion.tracking.trackio import Trackio
from fedfusion.tracking.untracked import Untracked
from fedfusion.tracking.wandb import WandB

__all__ = [
    "Jsonl",
    "MLflow",
    "TensorBoard",
    "Terminal",
    "Tracker",
    "Trackio",
    "Untracked",
    "WandB",
]
