"""Stand-ins for the functions of `mindspore.mint.distributed` that Cells call on Ascend in PyNative mode: what the
documentation says of each, done over a mesh of CPU ranks.

They insist on what the documentation asks for: a contiguous tensor to write into, of the type and shape of the result;
groups by the names under which they were made.
"""

import numpy as np

from mindspore import Tensor

from locmoe_ops.collectives import hccl, hccl_functions


class Work:
    """What an asynchronous call returns; `wait` writes its result."""

    def __init__(self, finish):
        self.finish = finish

    def wait(self):
        self.finish()


class MeshFunctions:
    """Functions of one rank. `install` puts them, and the making of groups, in MindSpore's places.

    Attributes:
        calls: (function, group, shape) of all calls, in their order; of an asynchronous one, its wait as well.
    """

    def __init__(self, mesh):
        self.mesh, self.groups, self.calls = mesh, {hccl.GlobalComm.WORLD_COMM_GROUP: range(mesh.world_size)}, []

    def install(self, set_attribute=setattr):
        set_attribute(hccl, "create_group", self.groups.__setitem__)
        set_attribute(hccl_functions, "distributed", self)

    def all_reduce(self, tensor, op="sum", group=None, async_op=False):
        self._run("all_reduce", tensor, tensor, group, op)

    def all_gather_into_tensor(self, output_tensor, input_tensor, group=None, async_op=False):
        self._run("all_gather", output_tensor, input_tensor, group)

    def reduce_scatter_tensor(self, output, input, op="sum", group=None, async_op=False):
        self._run("reduce_scatter", output, input, group, op)

    def broadcast(self, tensor, src, group=None, async_op=False):
        self._run("broadcast", tensor, tensor, group, root=list(self.groups[group]).index(src))

    def all_to_all_single(
        self, output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False
    ):
        if output_split_sizes is not None:
            assert isinstance(output_split_sizes, list) and isinstance(input_split_sizes, list)
            assert output.shape[0] == sum(output_split_sizes) and input.shape[0] == sum(input_split_sizes)
            sizes = [np.array(sizes, np.int64) for sizes in (input_split_sizes, output_split_sizes)]
            return self._run("all_to_all_v", output, input, group, sizes=[*sizes, output.shape[0]])
        if not async_op:
            return self._run("all_to_all", output, input, group)
        self._check(output, input, group)
        self.calls.append(("start", group, tuple(input.shape)))
        running = self.mesh.start_all_to_all(list(self.groups[group]), f"start/{group}", input.asnumpy().copy())

        def finish():
            self.calls.append(("wait", group, tuple(output.shape)))
            output.copy_(Tensor(running.wait()))

        return Work(finish)

    def _check(self, output, input, group):
        assert input.is_contiguous() and output.is_contiguous() and output.dtype == input.dtype
        assert self.mesh.rank in self.groups[group]

    def _run(self, operation, output, input, group, op="sum", sizes=(), **options):
        self._check(output, input, group)
        assert op == "sum"
        self.calls.append((operation, group, tuple(input.shape)))
        result = getattr(self.mesh, operation)(
            list(self.groups[group]), f"{operation}/{group}", input.asnumpy().copy(), *sizes, **options
        )
        assert result.shape == tuple(output.shape), f"{operation}: {result.shape} for {output.shape}"
        output.copy_(Tensor(result))
