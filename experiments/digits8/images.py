"""Write the digits that ship with fedfusion from those that ship with scikit-learn.

python experiments/digits8/images.py --out fedfusion/assets/digits.npz
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", required=True)
digits = load_digits()
np.savez_compressed(
    parser.parse_args().out, images=digits.images.astype(np.uint8), digits=digits.target.astype(np.uint8)
)
