"""Runs a step on one device, on all devices of one process, or across processes; the only user of pmap and shard_map.

    one device                  jit
    one process, many devices   pmap over the axis "data"
    many processes              jit(shard_map) over one mesh of all devices, since pmap supports no donation there

A step is a pure function step(state, batch, *rest, axis_name=...) that works in all three cases: it sums local
numerators, psums denominators and gradients over `axis_name` unless that is None, and seeds randomness per example by
`global_row_index`.
"""

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from must.core.types import Array, Batch, PyTree, UserError

AXIS = "data"

_TESTED = ((0, 10), (0, 11))  # versions of jaxlib, major and minor
_FAST_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def parallelize(
    step: Callable[..., PyTree],
    *,
    out_axes: int | None = None,
    donate: Sequence[int] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Callable[..., PyTree]:
    """Compiles a step for the available devices.

    Args:
      step: (state, batch, *rest, axis_name) -> outputs; pure. `axis_name` is None on one device, else "data".
      out_axes: None if all devices return equal values (unchecked; those of device 0 are used), 0 if outputs are rows
        [B, ...], which are returned in the order of the batch's rows.
      donate: indices of arguments whose memory is reused for outputs; the caller must not use them afterwards.
      devices: to run on; all devices of all processes by default.

    Returns:
      fn(state, batch, *rest): `state` and `rest` are equal on all devices, without a device axis; place values that are
      passed repeatedly with `replicate`. `batch` is a pytree of arrays [B, ...] with this process's rows
      (`process_rows`), and so are outputs if out_axes=0. Where the devices do not divide B, the last row is repeated,
      with weight 0, id -1 and `present` False in a `Batch`; outputs lack these rows.
    """
    devices = _in_process_order(jax.devices() if devices is None else devices)
    if len({device.process_index for device in devices}) > 1:
        return _across_processes(step, out_axes, tuple(donate), devices)
    if len(devices) > 1:
        return _across_devices(step, out_axes, tuple(donate), devices)
    alone = functools.partial(step, axis_name=None)
    compiled = jax.jit(alone, donate_argnums=tuple(donate), compiler_options=compiler_options(devices[0]))

    def on_one_device(state, batch, *rest, program=compiled):
        with jax.default_device(devices[0]):
            return program(state, batch, *rest)

    return _with_lower(step, on_one_device, lambda *args: on_one_device(*args, program=compiled.lower))


def compiler_options(device: jax.Device) -> dict[str, str]:
    """Options of `jax.jit` for a step on a device.

    On CPU XLA drops optimization barriers before it fuses operations, and with them what `must.models` and
    `jax.checkpoint` mean by them; elsewhere it drops them after.
    """
    tested = jaxlib.version.__version_info__[:2] in _TESTED
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if device.platform == "cpu" and tested else {}


def _across_devices(step, out_axes, donate, devices):
    """pmap with state that has no device axis; splits and rejoins rows."""

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
        return leaf.reshape((len(devices), -1, *leaf.shape[1:]))

    def lower(state, batch, *rest):
        batch, _ = _padded(batch, len(devices))
        return compiled(2 + len(rest)).lower(state, jax.tree.map(split, batch), *rest)

    def on_devices(state, batch, *rest):
        batch, rows = _padded(batch, len(devices))
        outputs = compiled(2 + len(rest))(state, jax.tree.map(split, batch), *rest)
        if out_axes is not None:
            outputs = jax.tree.map(lambda leaf: leaf[:rows], join(outputs))
        if devices[0].platform == "cpu":
            # Simulated devices share one thread pool: a second step in flight can take the threads that the first one's
            # collectives wait for, a deadlock until XLA aborts the process.
            jax.block_until_ready(outputs)
        return outputs

    return _with_lower(step, on_devices, lower)


def _across_processes(step, out_axes, donate, devices):
    """shard_map over a mesh of all devices; converts arguments to global arrays."""
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
            # With the check, gradients of replicated parameters would already be summed over devices.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donate, compiler_options=compiler_options(devices[0]))

    def spread(leaf):
        return jax.make_array_from_process_local_data(NamedSharding(mesh, rows), np.asarray(leaf))

    def lower(state, batch, *rest):
        state, *rest = _place((state, *rest), mesh)
        batch, _ = _padded(batch, local_devices)
        return compiled(2 + len(rest)).lower(state, jax.tree.map(spread, batch), *rest)

    def on_processes(state, batch, *rest):
        state, *rest = _place((state, *rest), mesh)
        batch, rows = _padded(batch, local_devices)
        outputs = compiled(2 + len(rest))(state, jax.tree.map(spread, batch), *rest)
        return outputs if out_axes is None else jax.tree.map(lambda leaf: _own_rows(leaf)[:rows], outputs)

    return _with_lower(step, on_processes, lower)


def _with_lower(step, run, lower):
    """`run` under the step's name; its attribute `lower` makes the program of one device from the same arguments."""
    run = functools.wraps(step)(run)
    run.lower = lower
    return run


def program_bytes(lowered: jax.stages.Lowered) -> int:
    """Memory of a device that a program takes with its arguments and results; a run reuses what is compiled here."""
    found = lowered.compile().memory_analysis()
    if found is None:
        return 0
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes + found.generated_code_size_in_bytes


def memory_limit(gib: float = 0) -> float:
    """Bytes of a device: so many GiB, or what it reports; 0 if it reports nothing, as on CPU."""
    reported = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    return gib * 2**30 if gib else float(reported)


@functools.cache
def matmul_rate(precision: str) -> float:
    """Floating-point operations per second of a square product on a device, the best of five."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    device = jax.local_devices()[0]
    matrix, product = jax.device_put(np.ones((side, side), jnp.dtype(precision)), device), jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(matrix))
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix))
        spent.append(time.perf_counter() - start)
    return 2 * side**3 / min(spent)


def global_row_index(batch_size: int, axis_name: str | None) -> Array:
    """Inside a step: the position of each local row in the global batch, int32 [batch_size].

    Randomness seeded by it does not depend on the number of devices.
    """
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch_size
    return start + jnp.arange(batch_size, dtype=jnp.int32)


def roll_rows(rows: Array, axis_name: str | None) -> Array:
    """Inside a step: rolls the rows of the global batch by one, so that the last row becomes the first."""
    last = rows[-1:]
    if axis_name is not None:
        count = jax.lax.psum(1, axis_name)
        last = jax.lax.ppermute(last, axis_name, [(i, (i + 1) % count) for i in range(count)])
    return jnp.concatenate([last, rows[:-1]])


def process_rows(global_batch: int) -> tuple[int, int]:
    """(start, stop) of the rows of a global batch that this process reads.

    Raises:
      UserError: the batch size is not a multiple of the number of processes.
    """
    if global_batch % jax.process_count():
        raise UserError(f"batch size {global_batch} is not divisible by {jax.process_count()} processes")
    rows = global_batch // jax.process_count()
    return jax.process_index() * rows, (jax.process_index() + 1) * rows


def replicate(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Copies a pytree of arrays to every device, the form in which `parallelize` takes and returns state.

    Args:
      tree: arrays, including PRNG keys, that are equal in all processes.
      devices: as in `parallelize`.

    Raises:
      ValueError: the values differ between processes.
    """
    devices = _in_process_order(jax.devices() if devices is None else devices)
    if len({device.process_index for device in devices}) > 1:
        digest = hashlib.sha256(b"".join(np.asarray(_raw(leaf)).tobytes() for leaf in jax.tree.leaves(tree))).digest()
        digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
        if np.any(digests != digests[0]):
            raise ValueError("the processes passed different values to replicate")
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    return _place(tree, _mesh(devices))


def placing() -> Callable[[np.ndarray], Array] | None:
    """What sends an array of a batch to the device ahead of its step; None where steps take arrays from the host, which
    is on CPU and with several devices, whose rows `parallelize` distributes."""
    if len(jax.devices()) > 1 or jax.default_backend() == "cpu":
        return None
    return functools.partial(jax.device_put, device=jax.devices()[0])


def is_writer() -> bool:
    """Whether this process, process 0, writes files; does not initialize devices in a one-process run."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until every process of a distributed run has called this with the same name `what`."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(what)


def initialize_distributed(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of a run; call before anything else initializes JAX's devices.

    Args:
      coordinator: "host:port" of process 0; "auto" on clusters that provide it (TPU pods, Slurm); None for one process.
      num_processes: total number; ignored with "auto".
      process_id: of this process, from 0; ignored with "auto".

    Raises:
      UserError: missing arguments, or no connection.
    """
    if coordinator is None:
        return
    if coordinator != "auto" and (num_processes is None or process_id is None):
        raise UserError(f"coordinator {coordinator}: num_processes and process_id are also required")
    where: dict[str, Any] = {}
    if coordinator != "auto":
        where = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    try:
        jax.distributed.initialize(**where)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"coordinator {coordinator}: {str(error).splitlines()[0]}") from None


def set_xla_flags(simulated_devices: int | None = None) -> None:
    """Adds flags for fast CPU convolutions to XLA_FLAGS; call before anything initializes JAX's devices.

    Args:
      simulated_devices: number of simulated CPU devices.
    """
    flags = [os.environ.get("XLA_FLAGS", "")]
    # XLA aborts on unknown flags, so this one is set only for tested versions.
    if jaxlib.version.__version_info__[:2] in _TESTED and _FAST_CONVOLUTIONS not in flags[0]:
        flags.append(_FAST_CONVOLUTIONS)
    if simulated_devices is not None:
        flags.append(f"--xla_force_host_platform_device_count={simulated_devices}")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()


def start_pinned(cores: Sequence[int]) -> None:
    """Initializes JAX's devices with one thread per core of the machine, then pins all threads to the given cores.

    The number of threads affects the rounding of sums on CPU, so it must not depend on the cores that a process gets;
    `move_to_cores` can change them at any time.
    """
    jax.devices()
    move_to_cores(os.getpid(), cores)


def move_to_cores(process: int, cores: Sequence[int]) -> None:
    """Moves every thread of a process to the given CPU cores, if the system supports it (Linux)."""
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError):  # the thread or the process has just ended
                os.sched_setaffinity(int(thread), cores)
    except (FileNotFoundError, AttributeError):
        return


def _in_process_order(devices):
    """Devices by process, so that the global row order does not depend on the platform's device order."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def _mesh(devices):
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _padded(batch, devices):
    """A batch, or tree of batches, with every B rounded up to a multiple of the devices; and the rows of the first."""
    rows = len(jax.tree.leaves(batch)[0])

    def pad(part):
        count = len(part.ids if isinstance(part, Batch) else part)
        missing = -count % devices
        if not missing:
            return part
        real = np.arange(count + missing) < count
        repeated = jax.tree.map(lambda leaf: leaf[np.minimum(np.arange(len(real)), count - 1)], part)
        if not isinstance(part, Batch):
            return repeated
        weights = {name: value * real for name, value in repeated.weights.items()}
        present = real if part.present is None else repeated.present & real
        return repeated._replace(weights=weights, ids=np.where(real, repeated.ids, -1), present=present)

    return jax.tree.map(pad, batch, is_leaf=lambda part: isinstance(part, Batch)), rows


def _is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf):
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _place(tree, mesh):
    """Replicates every leaf over the mesh, unless it already is."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        if _is_key(leaf):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(place, tree)


def _own_rows(leaf):
    """The rows of a global array on this process's devices, in order."""
    shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
