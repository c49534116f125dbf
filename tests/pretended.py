"""A pretended GPU: tensors that say they live there, and refuse to meet those that do not.

They are computed with on the CPU, so that a program's devices can be tested without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")


class PretendedGPU(TorchFunctionMode):
    """In this context tensors can be asked for on `GPU`; one with the others there is an error.

    As torch has it, a tensor without dimensions may come from the CPU, and so may an index.
    """

    FREE = (torch.Tensor.to, torch.Tensor.__getitem__, torch.Tensor.__setitem__)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if placed(tensor)]
        if function == torch.Tensor.device.__get__:
            return GPU if there else torch.device("cpu")
        if function == torch.Tensor.is_cuda.__get__:
            return bool(there)
        asked = [leaf for leaf in tree_leaves((args, kwargs)) if is_gpu(leaf)]
        here = [tensor for tensor in tensors if not placed(tensor) and tensor.ndim]
        if there and here and function not in self.FREE:
            raise RuntimeError(f"{function.__name__}: tensors on the CPU and on the GPU")
        args, kwargs = tree_map(lambda leaf: "cpu" if is_gpu(leaf) else leaf, (args, kwargs))
        result = function(*args, **kwargs)
        if function is torch.Tensor.cpu:
            return result.clone()
        goes = bool(asked or there)
        if function is torch.Tensor.to:
            given = tensors[1:]
            moved = any(
                isinstance(leaf, torch.device | str) for leaf in tree_leaves((args, kwargs))
            )
            goes = bool(asked) or (placed(given[0]) if given else not moved and bool(there))
            result = result.clone() if goes != placed(tensors[0]) else result
        for leaf in tree_leaves(result):
            if goes and isinstance(leaf, torch.Tensor):
                leaf.pretended = True  # type: ignore[attr-defined]
        return result


def placed(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "pretended", False)


def is_gpu(leaf: Any) -> bool:
    return isinstance(leaf, torch.device | str) and str(leaf) in ("cuda", "cuda:0")
