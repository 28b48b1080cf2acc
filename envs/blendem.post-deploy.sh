#!/usr/bin/env bash
# UNTESTED with conda, see blendem.yaml. Run at the top of the repository, in the environment.
set -euo pipefail
python -m pip install --require-hashes -r envs/requirements.txt
python -m pip install --no-deps --no-build-isolation -e .
