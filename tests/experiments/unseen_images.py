"""Whether a weak teacher helps more on images that it has not seen: small networks on synthetic data.

    python -m tests.experiments.unseen_images

Ten inputs, four classes by a small random network, a tenth of the labels wrong. The teacher, a wide network that
memorizes its part of 1,024 examples, labels for students that are too small to do so: its own examples (seen), the
others (unseen), as many others (cut), or all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

COUNT, TEST, CLASSES, INPUTS = 1024, 4096, 4, 10
TEACHER, STUDENT = 128, 6  # widths
ARMS = ("truth on seen", "seen", "unseen", "cut", "all", "shuffled")


def init(key, width, scale=1.0):
    a, b = jax.random.split(key)
    return {
        "w": scale * jax.random.normal(a, (INPUTS, width)) / np.sqrt(INPUTS),
        "b": jnp.zeros(width),
        "v": jax.random.normal(b, (width, CLASSES)) / np.sqrt(width),
        "c": jnp.zeros(CLASSES),
    }


def answer(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] + params["c"]


def trained(key, x, target, width, decay=0.0, scale=1.0, steps=400, rate=0.02):
    """Adam on the cross-entropy of soft targets."""
    import optax

    tx = optax.adamw(rate, weight_decay=decay)
    params = init(key, width, scale)

    def loss(params):
        return -(target * jax.nn.log_softmax(answer(params, x))).sum(-1).mean()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), None, length=steps)[0][0]


@functools.partial(jax.jit, static_argnums=(1, 2))
@functools.partial(jax.vmap, in_axes=(0, None, None))
def run(key, one_in: int, arms: tuple[str, ...]):
    """{arm: accuracy} of one seed."""
    keys = jax.random.split(key, 6)
    truth = jax.tree.map(lambda leaf: 2.0 * leaf, init(keys[0], 4))
    x = jax.random.normal(keys[1], (COUNT + TEST, INPUTS))
    label = answer(truth, x).argmax(-1)
    wrong = jax.random.bernoulli(keys[2], 0.1, (COUNT,))
    noisy = jnp.where(wrong, jax.random.randint(keys[3], (COUNT,), 0, CLASSES), label[:COUNT])
    x_train, hard, part = x[:COUNT], jax.nn.one_hot(noisy, CLASSES), COUNT // one_in
    seen, unseen = slice(part), slice(part, COUNT)
    teacher = trained(keys[4], x_train[seen], hard[seen], TEACHER)
    soft = jax.nn.softmax(answer(teacher, x_train))
    rows = {"truth on seen": seen, "seen": seen, "unseen": unseen, "cut": slice(part, 2 * part), "all": slice(COUNT)}
    rows["shuffled"] = unseen
    targets = {"truth on seen": hard, "shuffled": jnp.roll(soft, 1, 0)}

    def score(params):
        return (answer(params, x[COUNT:]).argmax(-1) == label[COUNT:]).mean()

    def student(name):
        target = targets.get(name, soft)[rows[name]]
        return trained(keys[5], x_train[rows[name]], target, STUDENT, decay=0.3, scale=0.5, steps=300)

    found = {name: score(student(name)) for name in arms}
    return {"teacher": score(teacher), **found}


def table(
    seeds: int = 16, parts: tuple[int, ...] = (2, 4, 8), arms: tuple[str, ...] = ARMS
) -> dict[int, dict[str, np.ndarray]]:
    """{one in so many: {arm: accuracy [seeds]}}."""
    keys = jax.random.split(jax.random.key(0), seeds)
    return {n: {name: np.asarray(value) for name, value in run(keys, n, arms).items()} for n in parts}


if __name__ == "__main__":
    found = table()
    print("teacher's part  " + "".join(f"{name:>15}" for name in found[8]) + "   unseen > seen")
    for one_in, arms in found.items():
        better = int((arms["unseen"] > arms["seen"]).sum())
        print(
            f"1/{one_in:<14}"
            + "".join(f"{value.mean():15.3f}" for value in arms.values())
            + f"   {better} of {len(arms['seen'])}"
        )
