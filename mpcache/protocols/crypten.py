"""The suite `crypten`: CrypTen 0.4.1's own primitives over our transport. The baseline.

The only file that imports CrypTen. Its process-wide state (communicator, generators) is replaced by
per-thread state while a channel is attached, and put back afterwards, so that two parties can run
in one process.

Baseline only, not secure as it stands: triples come from party 0 itself (`TrustedFirstParty`), and
masks from torch's Mersenne Twister, which is not cryptographic.
"""

from __future__ import annotations

import secrets
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch.distributed import ReduceOp

from mpcache.errors import MpcacheError, UsageError
from mpcache.protocols.channel import Channel, Spec
from mpcache.protocols.ledger import Ledger
from mpcache.protocols.operation import Suite
from mpcache.protocols.secret import Secret
from mpcache.protocols.setting import Setting

INSTALL = "pip install --no-deps crypten==0.4.1"
INSECURE = (
    "suite crypten draws its triples from party 0 itself (TrustedFirstParty): baseline only",
    "suite crypten masks with torch's generator, which is not cryptographic: baseline only",
)


def _import_crypten() -> Any:
    # crypten.nn.onnx_converter needs names that torch >= 2.9 lacks; mpcache has no use for it.
    name = "crypten.nn.onnx_converter"
    if name not in sys.modules:
        stand_in = types.ModuleType(name)
        for attribute in (
            "from_onnx",
            "from_pytorch",
            "from_tensorflow",
            "FromOnnx",
            "TF_AND_TF2ONNX",
        ):
            setattr(stand_in, attribute, None)
        sys.modules[name] = stand_in
    try:
        import crypten
    except ImportError as error:
        sys.modules.pop(name, None)
        raise UsageError(
            f"CrypTen cannot be imported ({error}); install it with `{INSTALL}`"
            " beside torch, numpy, pyyaml and omegaconf"
        ) from error
    return crypten


crypten = _import_crypten()

from crypten import communicator as _comm  # noqa: E402
from crypten.communicator import Communicator as _CommunicatorBase  # noqa: E402
from crypten.mpc import MPCTensor  # noqa: E402
from crypten.mpc.primitives import ArithmeticSharedTensor, beaver  # noqa: E402

_local = threading.local()
_lock = threading.Lock()
_attached = 0
_saved: dict[str, Any] = {}


class ChannelCommunicator(_CommunicatorBase):
    """CrypTen's collectives as exchanges on a channel.

    Python objects are refused: CrypTen would pickle them.
    """

    BYTES_PER_ELEMENT = 8

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.rank, self.world = channel.rank, channel.world
        self.peers = [rank for rank in range(self.world) if rank != self.rank]
        self.reset_communication_stats()

    def get_world_size(self) -> int:
        return self.world

    def get_rank(self) -> int:
        return self.rank

    def get_name(self) -> str:
        return f"party {self.rank}"

    def send(self, tensor: torch.Tensor, dst: int) -> None:
        self.channel.exchange("send", {dst: [tensor]}, {})

    def recv(self, tensor: torch.Tensor, src: int) -> torch.Tensor:
        return self.channel.exchange("send", {}, {src: [Spec.of(tensor)]})[src][0]

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        own = list(input) if batched else [input]
        specs = [Spec.of(tensor) for tensor in own]
        got = self.channel.exchange(
            "all_reduce", dict.fromkeys(self.peers, own), dict.fromkeys(self.peers, specs)
        )
        result = [
            _reduce(op, [tensor, *(got[p][i] for p in self.peers)]) for i, tensor in enumerate(own)
        ]
        return result if batched else result[0]

    def reduce(
        self, input: torch.Tensor, dst: int, op: Any = ReduceOp.SUM, batched: bool = False
    ) -> torch.Tensor | None:
        if batched:
            raise MpcacheError("batched reduce is not used by mpcache")
        if self.rank != dst:
            self.channel.exchange("reduce", {dst: [input]}, {})
            return None
        got = self.channel.exchange("reduce", {}, {p: [Spec.of(input)] for p in self.peers})
        return _reduce(op, [input, *(got[peer][0] for peer in self.peers)])

    def gather(self, tensor: torch.Tensor, dst: int) -> list[Any]:
        if self.rank != dst:
            self.channel.exchange("gather", {dst: [tensor]}, {})
            return [None]
        got = self.channel.exchange("gather", {}, {p: [Spec.of(tensor)] for p in self.peers})
        return [tensor if rank == dst else got[rank][0] for rank in range(self.world)]

    def scatter(
        self, scatter_list: list[torch.Tensor], src: int, size: Any = None, device: Any = None
    ) -> torch.Tensor:
        if self.rank == src:
            self.channel.exchange("scatter", {p: [scatter_list[p]] for p in self.peers}, {})
            return scatter_list[self.rank]
        spec = Spec(tuple(size)) if size is not None else Spec.of(scatter_list[self.rank])
        return self.channel.exchange("scatter", {}, {src: [spec]})[src][0]

    def _no_objects(self, *_: Any, **__: Any) -> Any:
        raise MpcacheError("CrypTen asked to send a Python object; mpcache sends tensors only")

    send_obj = recv_obj = broadcast_obj = _no_objects


def _reduce(op: Any, tensors: list[torch.Tensor]) -> torch.Tensor:
    result = tensors[0].clone()
    for tensor in tensors[1:]:
        if op == ReduceOp.BXOR:
            result ^= tensor
        else:
            result += tensor
    return result


class _PerThread(dict):  # type: ignore[type-arg]
    """Looks up the attached thread's generator of one kind, for any device key."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __getitem__(self, device: Any) -> torch.Generator:
        return _local.generators[self.kind]


@contextmanager
def attached(channel: Channel) -> Iterator[None]:
    """Within this context, CrypTen in this thread talks over `channel`.

    One exchange gives each party a seed in common with each neighbour, for CrypTen's
    pseudo-random sharings of zero.
    """
    global _attached
    with _lock:
        if _attached == 0:
            _saved.update(
                get=_comm.get, ready=_comm.is_initialized, generators=dict(crypten.generators)
            )
            _comm.get = lambda: _local.communicator
            _comm.is_initialized = lambda: hasattr(_local, "communicator")
            crypten.generators.update({kind: _PerThread(kind) for kind in crypten.generators})
        _attached += 1
    try:
        _local.communicator = ChannelCommunicator(channel)
        _local.generators = _seeded(channel)
        yield
    finally:
        vars(_local).clear()
        with _lock:
            _attached -= 1
            if _attached == 0:
                _comm.get, _comm.is_initialized = _saved["get"], _saved["ready"]
                crypten.generators.update(_saved["generators"])
                _saved.clear()


def _seeded(channel: Channel) -> dict[str, torch.Generator]:
    after, before = (channel.rank + 1) % channel.world, (channel.rank - 1) % channel.world
    own = torch.tensor(secrets.randbits(64) - 2**63, dtype=torch.int64)
    got = channel.exchange("seeds", {after: [own]}, {before: [Spec(())]})[before][0]
    seeds = {"next": own.item(), "prev": got.item(), "local": secrets.randbits(64) - 2**63}
    generators = {kind: torch.Generator() for kind in seeds}
    for kind, seed in seeds.items():
        generators[kind].manual_seed(int(seed))
    return generators


def _stock(x: Secret) -> Any:
    return ArithmeticSharedTensor.from_shares(x.share, precision=0)


class CryptenSuite(Suite):
    """CrypTen's primitives for one attached party. `ledger` notes the openings."""

    name: ClassVar[str] = "crypten"

    def __init__(self, setting: Setting, channel: Channel, ledger: Ledger) -> None:
        self.setting = setting
        self.rank = channel.rank
        self.ledger = ledger

    def share(
        self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int, source: int
    ) -> Secret:
        if self.rank != source:
            value = None
        elif value is None:
            raise MpcacheError(f"party {source} has no value to share")
        shared = ArithmeticSharedTensor(value, size=shape, precision=0, src=source)
        return Secret(shared.share, frac)

    def multiply(self, x: Secret, y: Secret) -> Secret:
        return Secret(beaver.mul(_stock(x), _stock(y)).share, x.frac + y.frac)

    def square(self, x: Secret) -> Secret:
        return Secret(beaver.square(_stock(x)).share, 2 * x.frac)

    def matmul(self, x: Secret, y: Secret, width: int = 64) -> Secret:
        return Secret(beaver.matmul(_stock(x), _stock(y)).share, x.frac + y.frac)

    def truncate(self, x: Secret, bits: int) -> Secret:
        return Secret(_stock(x).clone().div_(2**bits).share, x.frac - bits)

    def negative(self, x: Secret, magnitude: int = 15, keep: int = 16) -> Secret:
        return Secret(MPCTensor.from_shares(x.share, precision=0)._ltz().share, 0)

    def shift(self, x: Secret, public: torch.Tensor) -> Secret:
        share, public = torch.broadcast_tensors(x.share, public)
        return Secret(share + public if self.rank == 0 else share, x.frac)

    def open(self, x: Secret, to: int | None, why: str) -> torch.Tensor | None:
        target = "everyone" if to is None else "client"
        self.ledger.opened(why, target, x.share.numel())
        return _stock(x).reveal(dst=to)
