"""What compromised clients send."""

from fedfusion.attacks.honest import Honest as Honest
from fedfusion.attacks.sign_flipping import SignFlipping as SignFlipping
