"""One step on one device, on the devices of one process, or across processes: nobody else names pmap, meshes or
shard_map.

    one device                  jit
    one process, many devices   pmap over the axis "data"
    many processes              jit(shard_map) over one mesh of all devices: there pmap can neither donate nor be saved

A step is a pure function step(state, batch, *rest, axis_name=...). It is written once for all three: it sums its local
numerators, psums denominators and gradients over `axis_name` when that is not None, and draws randomness per example
from `global_row_index`.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from must.core.types import Array, PyTree, UserError

AXIS = "data"

_FAST_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def parallelize(
    step: Callable[..., PyTree],
    *,
    out_axes: int | None = None,
    donate: Sequence[int] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Callable[..., PyTree]:
    """Compiles a step for the devices at hand; a call is fn(state, batch, *rest).

    Args:
      step: (state, batch, *rest, axis_name) -> outputs; pure. `axis_name` is None under jit on one device, else "data".
      out_axes: None when every device returns the same values (summed with psum; nothing checks it: device 0's are
        taken), 0 when outputs are rows [B, ...], which come back in the order of the batch's rows.
      donate: indices of arguments whose memory the outputs may take; the caller must not use them afterwards.
      devices: those to run on; all devices of all processes by default.

    Returns:
      fn(state, batch, *rest): `state` and `rest` are the same on every device, without a device axis; what is passed
      again and again is best placed once with `replicate`. `batch` is a pytree of arrays [B, ...] that holds this
      process's rows (`process_rows`), and so do outputs under out_axes=0.

    Raises:
      ValueError: (when called) B is not a multiple of the number of this process's devices.
    """
    devices = _in_process_order(jax.devices() if devices is None else devices)
    if len({device.process_index for device in devices}) > 1:
        return _across_processes(step, out_axes, tuple(donate), devices)
    if len(devices) > 1:
        return _across_devices(step, out_axes, tuple(donate), devices)
    compiled = jax.jit(functools.partial(step, axis_name=None), donate_argnums=tuple(donate))

    @functools.wraps(step)
    def on_one_device(state, batch, *rest):
        with jax.default_device(devices[0]):
            return compiled(state, batch, *rest)

    return on_one_device


def _across_devices(step, out_axes, donate, devices):
    """pmap; state without a device axis, rows split here and joined again."""

    @functools.cache
    def compiled(arguments):
        in_axes = (None, 0) + (None,) * (arguments - 2)
        return jax.pmap(
            functools.partial(step, axis_name=AXIS),
            AXIS,
            in_axes=in_axes,
            out_axes=out_axes,
            donate_argnums=donate,
            devices=devices,
        )

    @jax.jit
    def join(outputs):
        return jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), outputs)

    def split(leaf):
        rows = _rows_per_device(leaf, len(devices))
        return leaf.reshape((len(devices), rows, *leaf.shape[1:]))

    @functools.wraps(step)
    def on_devices(state, batch, *rest):
        outputs = compiled(2 + len(rest))(state, jax.tree.map(split, batch), *rest)
        if out_axes is not None:
            outputs = join(outputs)
        if devices[0].platform == "cpu":
            # Simulated devices share one thread pool: a second step in flight takes the threads that the first one's
            # collectives wait for, and both stand still until XLA aborts the process.
            jax.block_until_ready(outputs)
        return outputs

    return on_devices


def _across_processes(step, out_axes, donate, devices):
    """shard_map over a mesh of all devices; arguments become global arrays here."""
    mesh = _mesh(devices)
    everywhere, rows = PartitionSpec(), PartitionSpec(AXIS)
    local_devices = sum(device.process_index == jax.process_index() for device in devices)

    @functools.cache
    def compiled(arguments):
        mapped = jax.shard_map(
            functools.partial(step, axis_name=AXIS),
            mesh=mesh,
            in_specs=(everywhere, rows) + (everywhere,) * (arguments - 2),
            out_specs=everywhere if out_axes is None else rows,
            # With the check on, gradients of replicated parameters come back already summed over devices.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donate)

    def spread(leaf):
        _rows_per_device(leaf, local_devices)
        return jax.make_array_from_process_local_data(NamedSharding(mesh, rows), np.asarray(leaf))

    @functools.wraps(step)
    def on_processes(state, batch, *rest):
        state, *rest = _place((state, *rest), mesh)
        outputs = compiled(2 + len(rest))(state, jax.tree.map(spread, batch), *rest)
        return outputs if out_axes is None else jax.tree.map(_own_rows, outputs)

    return on_processes


def global_row_index(batch_size: int, axis_name: str | None) -> Array:
    """Inside a step: the place of each local row in the global batch, int32 [batch_size].

    Randomness folded with it is the same on one device and on many.
    """
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch_size
    return start + jnp.arange(batch_size, dtype=jnp.int32)


def roll_rows(rows: Array, axis_name: str | None) -> Array:
    """Inside a step: every row one place later in the global batch, the last one first."""
    last = rows[-1:]
    if axis_name is not None:
        count = jax.lax.psum(1, axis_name)
        last = jax.lax.ppermute(last, axis_name, [(i, (i + 1) % count) for i in range(count)])
    return jnp.concatenate([last, rows[:-1]])


def process_rows(global_batch: int) -> tuple[int, int]:
    """(start, stop) of the rows of a global batch that this process reads.

    Raises:
      UserError: the batch size is not a multiple of the number of devices.
    """
    if global_batch % jax.device_count():
        raise UserError(f"batch size {global_batch} does not divide evenly over {jax.device_count()} devices")
    rows = global_batch // jax.process_count()
    return jax.process_index() * rows, (jax.process_index() + 1) * rows


def replicate(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """A copy of a pytree of arrays on every device, the form in which `parallelize` takes and returns state.

    Args:
      tree: arrays (PRNG keys too) that are equal in all processes.
      devices: as in `parallelize`.

    Raises:
      ValueError: the processes hold different values.
    """
    devices = _in_process_order(jax.devices() if devices is None else devices)
    if len({device.process_index for device in devices}) > 1:
        digest = hashlib.sha256(b"".join(np.asarray(_raw(leaf)).tobytes() for leaf in jax.tree.leaves(tree))).digest()
        digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
        if np.any(digests != digests[0]):
            raise ValueError("the processes hold different values of what should be replicated")
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    return _place(tree, _mesh(devices))


def is_writer() -> bool:
    """Whether this process writes files: process 0 alone does; asking does not wake JAX's devices in a plain run."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process of a distributed run has come here; `what` names the place, the same on all."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(what)


def initialize_distributed(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of a run; call before anything else touches JAX's devices.

    Args:
      coordinator: "host:port" of process 0; "auto" where the cluster tells (TPU pods, Slurm); None for one process.
      num_processes: how many there are; not read with "auto".
      process_id: which one this is, from 0; not read with "auto".

    Raises:
      UserError: an incomplete description, or no connection.
    """
    if coordinator is None:
        return
    if coordinator != "auto" and (num_processes is None or process_id is None):
        raise UserError(f"coordinator {coordinator}: the number of processes and this process's id are needed too")
    where: dict[str, str | int | None] = (
        {}
        if coordinator == "auto"
        else {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    )
    try:
        jax.distributed.initialize(**where)  # type: ignore[arg-type] # the types go by key
    except (RuntimeError, ValueError) as error:
        raise UserError(f"coordinator {coordinator}: {str(error).splitlines()[0]}") from None


def set_xla_flags(simulated_devices: int | None = None) -> None:
    """Adds to XLA_FLAGS what makes convolutions fast on CPU; call before anything touches JAX's devices.

    Args:
      simulated_devices: number of CPU devices that this process should appear to have.
    """
    flags = [os.environ.get("XLA_FLAGS", "")]
    # An XLA that does not know a flag aborts, so it is named only for the versions on which it was tried.
    if jaxlib.version.__version_info__[:2] in ((0, 10), (0, 11)) and _FAST_CONVOLUTIONS not in flags[0]:
        flags.append(_FAST_CONVOLUTIONS)
    if simulated_devices is not None:
        flags.append(f"--xla_force_host_platform_device_count={simulated_devices}")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()


def pin_threads(cores: Sequence[int]) -> None:
    """Keeps this process on the given CPU cores, where the system can; call before anything touches JAX's devices."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def start_pinned(cores: Sequence[int]) -> None:
    """Starts JAX's devices with a thread for every core of the machine, then keeps all threads on the given cores.

    The number of threads decides how sums are rounded on CPU, so results do not depend on which cores a process is
    given; `move_to_cores` may give it others at any time.
    """
    jax.devices()
    move_to_cores(os.getpid(), cores)


def move_to_cores(process: int, cores: Sequence[int]) -> None:
    """Moves every thread of a process to the given CPU cores, where the system can (Linux)."""
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError):  # the thread, or the process, has just ended
                os.sched_setaffinity(int(thread), cores)
    except (FileNotFoundError, AttributeError):
        return


def _in_process_order(devices):
    """Global row order = process order, whatever order the platform numbers its devices in."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def _mesh(devices):
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _rows_per_device(leaf, devices):
    if leaf.ndim == 0 or leaf.shape[0] % devices:
        raise ValueError(f"batch array of shape {leaf.shape} does not divide evenly over {devices} devices")
    return leaf.shape[0] // devices


def _is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf):
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _place(tree, mesh):
    """Every leaf as an array replicated over the mesh; those that are already are left alone."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        if _is_key(leaf):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(place, tree)


def _own_rows(leaf):
    """The rows of a global array that lie on this process's devices, in order."""
    shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
