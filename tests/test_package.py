"""Choices that are made when the package is imported."""

import os
import subprocess
import sys

import jax
import pytest


def test_products_of_float32_stay_float32():
    assert jax.config.jax_default_matmul_precision == "float32"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, "3"),
        ({"OMP_NUM_THREADS": "3", "NPROC": "2"}, "2"),
        ({}, "None"),
    ],
)
def test_a_job_takes_the_threads_that_it_is_granted(given, expected):
    """XLA reads NPROC; what the user has set stays."""
    names = ("OMP_NUM_THREADS", "NPROC")
    env = {k: v for k, v in os.environ.items() if k not in names} | given
    code = "import os, blendem; print(os.environ.get('NPROC'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected
