"""The one door to CrypTen: its process-wide state, its collectives, its absence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributed import ReduceOp

from mpcache.errors import MpcacheError, PeerError
from mpcache.parties.local import run_parties
from mpcache.parties.transport import Wires
from mpcache.protocols import crypten as door
from mpcache.protocols.crypten import ChannelCommunicator, CryptenSuite, attached
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.setting import Setting

from .harness import WORLDS, on_parties


def state() -> tuple[Any, ...]:
    comm = door._comm
    generators = {kind: id(by_device) for kind, by_device in door.crypten.generators.items()}
    return comm.get, comm.is_initialized, generators, door._attached


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("failing", [False, True])
def test_attaching_leaves_no_trace(world: int, failing: bool) -> None:
    before = state()

    def program(wires: Wires) -> None:
        with attached(wires):
            assert door._comm.get().get_rank() == wires.rank
            assert door._comm.get().get_world_size() == world
            assert door._comm.is_initialized()
            if failing and wires.rank == 1:
                raise ZeroDivisionError
            door.MPCTensor(torch.ones(3)).get_plain_text()
        assert not vars(door._local)

    if failing:
        with pytest.raises(ZeroDivisionError):
            run_parties(world, program)
    else:
        run_parties(world, program)
    assert state() == before
    assert not door._comm.is_initialized()


def test_a_peer_that_is_gone_while_attaching_leaves_no_trace() -> None:
    before = state()

    def program(wires: Wires) -> None:
        if wires.rank == 0:
            wires.close()
            return
        with attached(wires):
            pass

    with pytest.raises(PeerError, match="party 0"):
        run_parties(2, program)
    assert state() == before


def collectives(program: Callable[[ChannelCommunicator], Any], world: int) -> list[Any]:
    return run_parties(world, lambda wires: program(ChannelCommunicator(wires)))


def own(rank: int) -> torch.Tensor:
    return torch.tensor([rank + 1, 2**62, -1 - rank])


@pytest.mark.parametrize("world", WORLDS)
def test_reductions(world: int) -> None:
    total = own(0) + own(1) + (own(2) if world == 3 else 0)
    parity = own(0) ^ own(1) ^ (own(2) if world == 3 else torch.zeros_like(own(0)))

    def program(comm: ChannelCommunicator) -> None:
        x = own(comm.rank)
        assert torch.equal(comm.all_reduce(x), total)
        assert torch.equal(comm.all_reduce(x, op=ReduceOp.BXOR), parity)
        both = comm.all_reduce([x, x[:1].to(torch.uint8)], batched=True)
        assert torch.equal(both[0], total) and both[1].item() == world * (world + 1) // 2
        bits = comm.all_reduce([x, 2 * x], op=ReduceOp.BXOR, batched=True)
        assert torch.equal(bits[0], parity) and torch.equal(bits[1], 2 * parity)
        assert torch.equal(x, own(comm.rank)), "the input stays as it was"
        reduced = comm.reduce(x, 1)
        assert torch.equal(reduced, total) if comm.rank == 1 else reduced is None
        with pytest.raises(MpcacheError, match="batched reduce"):
            comm.reduce([x], 1, batched=True)  # type: ignore[arg-type]

    collectives(program, world)


@pytest.mark.parametrize("world", WORLDS)
def test_moves(world: int) -> None:
    def program(comm: ChannelCommunicator) -> None:
        x = own(comm.rank)
        gathered = comm.gather(x, 0)
        if comm.rank == 0:
            assert [t.tolist() for t in gathered] == [own(r).tolist() for r in range(world)]
        else:
            assert gathered == [None]
        parts = [own(rank) * 2 for rank in range(world)]
        if comm.rank == 1:
            part = comm.scatter(parts, 1)
        elif comm.rank == 0:
            part = comm.scatter([], 1, size=torch.Size([3]))
        else:
            part = comm.scatter(parts, 1)
        assert torch.equal(part, 2 * x)
        if comm.rank == 0:
            comm.send(x, 1)
        elif comm.rank == 1:
            assert torch.equal(comm.recv(torch.empty(3, dtype=torch.int64), 0), own(0))

    collectives(program, world)


def test_objects_are_refused() -> None:
    def program(comm: ChannelCommunicator) -> None:
        for call in (
            lambda: comm.send_obj({"a": 1}, 1 - comm.rank),
            lambda: comm.recv_obj(1 - comm.rank),
            lambda: comm.broadcast_obj([1], 0),
        ):
            with pytest.raises(MpcacheError, match="tensors only"):
                call()

    collectives(program, 2)


@pytest.mark.parametrize("world", WORLDS)
def test_stock_crypten_runs_over_our_wires(world: int) -> None:
    x = torch.tensor([[1.5, -2.25], [0.5, 3.0]])

    def program(machine: SecureMachine, wires: Wires) -> torch.Tensor:
        shared = door.MPCTensor(x, src=0)
        return ((shared.matmul(shared) + 1) * 2 - shared.relu()).get_plain_text()

    for got in on_parties(world, program):
        assert float((got - ((x @ x + 1) * 2 - x.relu())).abs().max()) < 20 * 2.0**-16


def test_parties_share_no_masks() -> None:
    """Each party draws its own seeds: shares differ from run to run and hide the value."""
    setting = Setting()

    def program(wires: Wires) -> torch.Tensor:
        with attached(wires):
            suite = CryptenSuite(setting, wires, wires.ledger)
            value = torch.full((500,), 7) if wires.rank == 0 else None
            return suite.share(value, (500,), 0, 0).share

    runs = [run_parties(2, program) for _ in range(2)]
    for shares in runs:
        assert torch.equal(shares[0] + shares[1], torch.full((500,), 7))
        assert all(len(set(share.tolist())) == 500 for share in shares)
        assert 150 < int((shares[1] < 0).sum()) < 350
    assert not torch.equal(runs[0][0], runs[1][0])


def test_only_the_source_gives_a_value() -> None:
    def program(machine: SecureMachine, wires: Wires) -> Any:
        with pytest.raises(MpcacheError, match="has no value to share"):
            machine.suite.share(None, (1,), 16, wires.rank)
        with pytest.raises(MpcacheError, match="open to the client only"):
            machine.open(machine.suite.share(None, (1,), 16, 1 - wires.rank), "everyone", "why")
        return True

    assert on_parties(2, program) == [True, True]


def test_missing_crypten_names_the_command() -> None:
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'crypten':
            raise ImportError('blocked')
sys.meta_path.insert(0, Blocker())
import mpcache.program
from mpcache.errors import UsageError
try:
    import mpcache.protocols.crypten
except UsageError as error:
    print(error)
print('crypten.nn.onnx_converter' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert door.INSTALL in done.stdout and "pip install --no-deps crypten" in door.INSTALL
    assert done.stdout.splitlines()[-1] == "False"


def test_the_baseline_names_what_is_insecure() -> None:
    assert any("TrustedFirstParty" in line for line in door.INSECURE)
    assert any("not cryptographic" in line for line in door.INSECURE)
