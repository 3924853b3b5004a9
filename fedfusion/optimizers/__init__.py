"""What the server makes of the change of the personal adapters in one round."""

from fedfusion.optimizers.fedadam import FedAdam as FedAdam
from fedfusion.optimizers.fedavgm import FedAvgM as FedAvgM
from fedfusion.optimizers.plain import Plain as Plain
