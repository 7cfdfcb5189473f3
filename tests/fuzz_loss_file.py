"""Fuzz the loader of loss files, guided by what its code covers (needs `pip install atheris`).

    python -m tests.fuzz_loss_file FOLDER -max_total_time=300

FOLDER keeps the files that reach something new. Half of the inputs are whole files as they come;
the others are the parts of a file, put together with a digest that fits, so that what lies behind
the digest is reached too.
"""

import json
import resource
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edl_jax.losses", "edl_jax.networks"]):
    import jax.numpy as jnp
    import numpy as np

    from edl_jax import EvolvedLoss, load_pretrained
    from edl_jax.errors import LossFileError
    from edl_jax.losses import evolved_loss

PATH = Path(tempfile.mkdtemp()) / "loss.safetensors"


def assembled(data: atheris.FuzzedDataProvider) -> bytes:
    """A safetensors file of fuzzed metadata, shapes and values."""
    good = json.dumps({"network": "class_agnostic", "hidden": [2], "activation": "silu"})
    header = {name: data.ConsumeUnicodeNoSurrogates(40) for name in ("config", "metrics")}
    header |= {"versions": "{}", "format": evolved_loss.FORMAT}
    header["architecture"] = good if data.ConsumeBool() else data.ConsumeUnicodeNoSurrogates(80)
    shapes = {"scale": [], "params.layers.0.bias": [2], "params.layers.0.kernel": [5, 2]}
    shapes |= {"params.layers.1.bias": [1], "params.layers.1.kernel": [2, 1]}
    entries, body, tensors = {}, b"", {}
    for name, shape in shapes.items():
        if data.ConsumeIntInRange(0, 15) == 0:
            shape = data.ConsumeIntListInRange(data.ConsumeIntInRange(0, 4), 0, 2**20)
        dtype = "F32" if data.ConsumeIntInRange(0, 15) else data.PickValueInList(["F64", "I8"])
        size = 4 * int(np.prod(shape)) if data.ConsumeIntInRange(0, 15) else data.ConsumeInt(4)
        value = np.full(size // 4 if 0 <= size < 4096 else 1, data.ConsumeFloat(), np.float32)
        tensors[name] = value
        offsets = [len(body), len(body) + size]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        body += value.tobytes()
    header["sha256"] = evolved_loss.digest(header, tensors)
    encoded = json.dumps({"__metadata__": header, **entries}).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def load(data: bytes) -> None:
    """Load a file; only a `LossFileError` may come of it, or a loss that can be used."""
    provider = atheris.FuzzedDataProvider(data[1:])
    with np.errstate(over="ignore"):
        PATH.write_bytes(assembled(provider) if data[:1] > b"\x7f" else data[1:])
    try:
        loss = EvolvedLoss.load(PATH)
    except LossFileError:
        return
    num_classes = loss.architecture.num_classes or 3
    value = np.asarray(loss(jnp.zeros((3, num_classes)), jnp.asarray([0, 1, 0])))
    assert value.shape == (3,), value
    assert not (value < 0).any(), value


if __name__ == "__main__":
    seeds = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    for folder in map(Path, seeds[:1]):
        folder.mkdir(parents=True, exist_ok=True)
        load_pretrained().save(PATH)
        (folder / "shipped").write_bytes(b"\0" + PATH.read_bytes())
        (folder / "assembled").write_bytes(b"\xff" + bytes(range(1, 200)))
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30,) * 2)
    atheris.Setup(sys.argv, load)
    atheris.Fuzz()
