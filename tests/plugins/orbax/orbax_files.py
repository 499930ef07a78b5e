"""Makes checkpoints with Orbax, and beside each what it restores of them: run with a directory, in a process of its own, because
JAX has to be told of its four devices before it is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

KINDS: dict[str, dict[str, bool]] = {
    "ocdbt": {},
    "zarr": {"use_ocdbt": False},
    "zarr3": {"use_zarr3": True},
    "zarr3-dirs": {"use_ocdbt": False, "use_zarr3": True},
}


def flat(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flat(value, (*path, str(key)))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from flat(value, (*path, str(index)))
    elif tree is not None and not isinstance(tree, str):
        yield "/".join(path), tree


def note(path: str, item: str = "") -> None:
    """What Orbax restores, as bytes: ``NAME.npz``, a member a tensor."""
    restored = ocp.PyTreeCheckpointer().restore(os.path.join(path, item) if item else path)
    arrays = {name: np.asarray(value) for name, value in flat(restored)}
    np.savez(path.rstrip("/") + ".npz", **{name: np.frombuffer(array.tobytes(), "u1") for name, array in arrays.items()})


def main(base: str) -> None:
    random = np.random.default_rng(0)

    def array(*shape: int, dtype: str = "float32") -> Any:
        return jnp.asarray(random.standard_normal(shape), dtype=dtype)

    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    params = {"dense": {"kernel": jax.device_put(array(34, 70), cut), "bias": array(70, dtype="bfloat16")}, "emb": array(500, 64)}
    state = {
        "params": params, "step": 7, "lr": 0.5, "name": "tiny", "nothing": None, "flags": np.array([True, False]),
        "averages": [jax.tree.map(jnp.zeros_like, params), {"mu": jnp.int32(5)}, (jnp.ones((1, 4), "float8_e4m3fn"),)],
        "zeros": [jnp.zeros(300), jnp.zeros(300)],
        "counts": np.arange(6, dtype="i8").reshape(2, 3), "big": np.arange(6, dtype=">f4"),
    }  # fmt: skip
    for name, options in KINDS.items():
        path = f"{base}/{name}"
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(path, state)
        note(path)
    small = {"params": {"w": jax.device_put(array(64, 32, dtype="bfloat16"), cut)}}
    saves = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=256), small)
    for name, options in KINDS.items():
        path = f"{base}/chunked-{name}"
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(path, small, ocp.args.PyTreeSave(small, saves))
        note(path)
    with ocp.CheckpointManager(f"{base}/run") as manager:
        for step in (10, 20):
            items = {"state": ocp.args.StandardSave(small), "config": ocp.args.JsonSave({"layers": step})}
            manager.save(step, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    note(f"{base}/run/20", "state")
    ocp.StandardCheckpointer().save(f"{base}/trained", {**small, "opt_state": [{"mu": small["params"]}, {"count": jnp.int32(5)}]})
    with ocp.CheckpointManager(f"{base}/two") as manager:
        items = {"params": ocp.args.StandardSave({"w": array(3)}), "ema": ocp.args.StandardSave({"w": array(3)})}
        manager.save(1, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    many = {f"layer_{number}": {"kernel": array(4, 4)} for number in range(1500)}  # keys enough for a tree of several nodes
    ocp.PyTreeCheckpointer().save(f"{base}/many", many)
    note(f"{base}/many")


if __name__ == "__main__":
    main(sys.argv[1])
