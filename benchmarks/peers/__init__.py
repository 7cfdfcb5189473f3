"""Others that can do the same work, one kind a file."""

from benchmarks.common import Contestant
from benchmarks.peers.evosax_loop import EVOSAX
from benchmarks.peers.evotorch_loop import EVOTORCH
from benchmarks.peers.torch_loops import TORCH

PEERS: tuple[Contestant, ...] = (EVOSAX, *TORCH, EVOTORCH)

__all__ = ["PEERS"]
