"""Batches of blends over several devices of one kind."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def whole_batch(batch: int) -> int:
    """`batch` rounded up so that every device has as many blends."""
    n = jax.device_count()
    return -(-batch // n) * n


def over_devices(tree: Any) -> Any:
    """Arrays whose leading axis is a `whole_batch`, in equal parts on all devices.

    Programs that map over this axis then run on all of them. With one device nothing changes.
    """
    devices = jax.devices()
    if len(devices) == 1:
        return tree
    mesh = Mesh(np.array(devices), ("blend",))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("blend")))
