"""Compile this room's kernels: ``python -m labelmux_encoder.kernels [UNIT …]``; all by default."""

import sys

from labelmux_encoder.kernels import FOLDER
from labelmux_encoder.kernels.build import build

if __name__ == "__main__":
    sys.exit(build(FOLDER, sys.argv[1:]))
