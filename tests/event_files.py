"""Read what TensorBoard shows of a run folder."""

import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2


def shown(run_dir: Path) -> dict[tuple[int, str], Any]:
    """By step and tag: numbers and texts, each shown once.

    As TensorBoard does, where a file says that a session starts at a step, all that was shown from
    that step on is dropped.
    """
    found: dict[tuple[int, str], Any] = {}
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: its length, a checksum, the event, a checksum
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            if event.HasField("session_log"):
                found = {key: value for key, value in found.items() if key[0] < event.step}
            for value in event.summary.value:
                assert (event.step, value.tag) not in found, f"{value.tag} is shown twice"
                is_text = value.WhichOneof("value") == "tensor"
                found[event.step, value.tag] = (
                    value.tensor.string_val[0].decode() if is_text else value.simple_value
                )
            at += 16 + length
    return found
