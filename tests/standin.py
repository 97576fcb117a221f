"""A stand-in for a GPU: device `standin:0`, whose tensors refuse to be mixed with CPU tensors.

`torch.device("standin")` is torch's PrivateUse1 device. Its tensors are wrapper subclasses (`StandIn`) around
CPU data, so autograd, modules, optimizers, attention and convolutions take the paths of a device that is not
the CPU, and compute the CPU's numbers. Inside `standin()`

  * an operation on stand-in and CPU tensors together raises, as on CUDA: 0-dim CPU numbers beside pointwise
    operations and CPU indices are allowed, a CPU generator is not;
  * everything for which a GPU would make the host wait is recorded with the line of our code that asked:
    copies to the host (`item`, `bool`, `tolist`, `cpu`), operations whose output size depends on data
    (`nonzero`, boolean indices), and copies to the device from pageable memory.

What it cannot show: branches on `is_cuda`, CUDA kernels (varlen attention, liger), dtypes that kernels lack,
streams, memory, and time. Modes belong to a thread: what other threads do with the device fails.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "standin"
ROOT = Path(__file__).resolve().parents[1]
aten = torch.ops.aten

# Operations that wait for the device because the size of their output is in its memory, or because they
# return a number to Python.
DATA_DEPENDENT = {
    aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_consecutive, aten.unique_dim,
    aten.bincount, aten.equal, aten.is_nonzero, aten.linalg_svd, aten._linalg_svd, aten.linalg_qr,
    aten.linalg_pinv, aten._linalg_eigh, aten.linalg_inv_ex, aten._linalg_solve_ex,
}  # fmt: skip
# Their index arguments may lie on the CPU; they are then copied.
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# Not pointwise, but they take a 0-dim CPU tensor beside device tensors.
TAKES_NUMBERS = {aten.masked_fill, aten.masked_fill_, aten.index_put, aten.index_put_, aten.fill_, aten.where}
CTC = {aten._ctc_loss, aten._ctc_loss_backward}


@dataclass(frozen=True)
class Transfer:
    """One wait of the host.

    Args:
        to_host: A copy or an answer to the host; False for a blocking copy to the device.
        what: Operation.
        where: `file:line function` of the innermost line of this repository, tests aside.
    """

    to_host: bool
    what: str
    where: str


class Transfers(list[Transfer]):
    """Waits in the order they happened."""

    @property
    def to_host(self) -> list[Transfer]:
        return [t for t in self if t.to_host]

    @property
    def to_device(self) -> list[Transfer]:
        return [t for t in self if not t.to_host]

    def __str__(self) -> str:
        """A table: times, direction, place, operation; the text of failing assertions."""
        rows = Counter((not t.to_host, t.where, t.what) for t in self)
        lines = [
            f"{n:4d} x to {'device' if up else 'host  '}  {where}  {what}"
            for (up, where, what), n in sorted(rows.items())
        ]
        return "\n".join(["", *lines])


_active: list[Transfers] = []  # the innermost `standin()` collects


def _note(to_host: bool, func: Any) -> None:
    if _active:
        _active[-1].append(Transfer(to_host, str(func), _where()))


def _where() -> str:
    """Innermost frame of the package, its command line aside; else of whoever is not torch."""
    frame, other = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename
        for part in ("lit_moss", "callbacks"):
            if file.startswith(f"{ROOT / part}/") and not file.endswith("cli.py"):
                return f"{file.removeprefix(f'{ROOT}/')}:{frame.f_lineno} {frame.f_code.co_name}"
        if not other and file != __file__ and "/torch/" not in file and file.startswith("/"):
            other = f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return other


class StandIn(Tensor):
    """A tensor on the stand-in device; `held` are its values on the CPU."""

    held: Tensor
    # Methods are not wrapped: every operation arrives in `__torch_dispatch__`.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "StandIn":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.held = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    # With these two, `Module.to` exchanges the contents of parameters and keeps the objects, as on CUDA.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, *_: Any) -> "StandIn":
        return StandIn(inner["held"])

    def __deepcopy__(self, memo: dict[int, Any]) -> "StandIn":
        if id(self) in memo:
            return memo[id(self)]
        with torch.no_grad():
            copy = memo[id(self)] = StandIn(self.held.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copy._is_param = True  # type: ignore[attr-defined]
        return copy.requires_grad_(self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:  # torch.save copies to the host
        _note(True, "save")
        return self.held.detach().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"StandIn({self.held})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    packet = func.overloadpacket
    if _is_composite(func):  # in inference mode they come whole
        with _Dispatch():
            return func.decompose(*args, **kwargs)
    leaves = _leaves((args, tuple(kwargs.values())))
    ours = [x for x in leaves if isinstance(x, StandIn)]
    device = kwargs.get("device")
    goes_to_cpu = device is not None and torch.device(device).type == "cpu"
    here = torch.device(device).type == NAME if device is not None else bool(ours)
    if not here and not ours:
        return func(*args, **kwargs)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    cpu = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, StandIn)]
    if packet is aten._fused_sdp_choice:
        return 0  # the plain arithmetic: fused kernels belong to real devices
    if packet is aten._to_copy:
        blocking = not kwargs.pop("non_blocking", False)
        if ours and goes_to_cpu:
            _note(True, func)
        elif cpu and here and blocking:
            _note(False, func)
    elif packet is aten.copy_:
        into, source = args[:2]
        here = isinstance(into, StandIn)
        if not here:
            _note(True, func)
        elif not isinstance(source, StandIn) and not (len(args) > 2 and args[2]):
            _note(False, func)
    elif packet is aten._local_scalar_dense:
        _note(True, func)
    elif ours:
        _check(func, packet, args, kwargs, cpu)
    out = func(*_map(_inner, args), **{name: _map(_inner, x) for name, x in kwargs.items()})
    if not here or packet is aten._local_scalar_dense:
        return args[0] if packet is aten.copy_ else out
    return _outer(func, args, kwargs, out)


@cache
def _writes(func: Any) -> tuple[dict[str, tuple[int, str]], list[str | None]]:
    """Written arguments by the name of their memory, as place and name; and which of them are returned."""

    def memory(x: Any) -> str | None:
        return next(iter(x.alias_info.before_set)) if x.alias_info and x.alias_info.is_write else None

    arguments = {memory(a): (i, a.name) for i, a in enumerate(func._schema.arguments)}
    arguments.pop(None, None)
    return arguments, [memory(r) for r in func._schema.returns]


def _outer(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
    """Results as stand-in tensors; those written in place are the arguments themselves."""
    written, returns = _writes(func)
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():
            func(*args, **kwargs)  # the wrapper's own sizes and strides
    if not torch.is_inference_mode_enabled() or all(
        x.is_inference() for x in _leaves(out) if isinstance(x, Tensor)
    ):
        wrapped = _map(_wrapped, out)
    else:  # a view of a tensor made outside inference mode is none of inference mode's either
        with torch.inference_mode(False):
            wrapped = _map(_wrapped, out)
    if not any(returns):
        return wrapped
    each = list(wrapped) if len(returns) > 1 else [wrapped]
    for n, memory in enumerate(returns):
        if memory is not None:
            place, name = written[memory]
            each[n] = args[place] if place < len(args) else kwargs[name]
    return tuple(each) if len(returns) > 1 else each[0]


def _inner(x: Any) -> Any:
    return x.held if isinstance(x, StandIn) else x


def _wrapped(x: Any) -> Any:
    return StandIn(x) if isinstance(x, Tensor) else x


def _leaves(x: Any) -> list[Any]:
    if isinstance(x, list | tuple):
        return [leaf for one in x for leaf in _leaves(one)]
    return [x]


def _map(function: Any, x: Any) -> Any:
    """A fourth of the time of torch's own, which looks for more kinds of nodes."""
    if isinstance(x, list | tuple):
        return (
            [_map(function, one) for one in x] if isinstance(x, list) else tuple(_map(function, o) for o in x)
        )
    return function(x)


def _check(func: Any, packet: Any, args: Any, kwargs: dict[str, Any], cpu: list[Tensor]) -> None:
    """Devices as CUDA checks them, and waits that hide in operations."""
    allowed: list[int] = []
    if packet in DATA_DEPENDENT or (packet is aten.repeat_interleave and kwargs.get("output_size") is None):
        _note(True, func)
    if packet in INDEXING:
        for index in args[1]:
            if not isinstance(index, Tensor):
                continue
            if index.dtype in (torch.bool, torch.uint8):
                _note(True, func)  # by way of nonzero
            if not isinstance(index, StandIn):
                allowed.append(id(index))
                _note(False, func)
    if packet in CTC:  # the native kernel reads both lengths on the host; its backward has them there
        for length in args[2:4] if packet is aten._ctc_loss else args[3:5]:
            if not isinstance(length, StandIn):
                allowed.append(id(length))
            elif packet is aten._ctc_loss:
                _note(True, func)
    numbers = torch.Tag.pointwise in func.tags or packet in TAKES_NUMBERS
    if not cpu:
        return
    written = [id(args[i]) for i, _ in _writes(func)[0].values() if i < len(args)]
    for x in cpu:
        if id(x) not in allowed and (x.ndim or not numbers or id(x) in written):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and cpu! ({func}: a CPU tensor of shape {tuple(x.shape)}, at {_where()})"
            )


class _Dispatch(TorchDispatchMode):
    """Operations that no stand-in tensor takes part in yet: factories, copies to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Function(TorchFunctionMode):
    """Functions that torch carries out below the dispatcher."""

    FROM_PYTHON = (torch.tensor, torch.as_tensor, torch.asarray)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if kwargs.get("generator") is not None:
            like = args[0].device if args and isinstance(args[0], Tensor) else "cpu"
            wanted = torch.device(like if device is None else device).type
            if kwargs["generator"].device.type != wanted:
                raise RuntimeError(
                    f"Expected a '{wanted}' device type for generator: {kwargs['generator'].device}"
                )
        if func is torch.Tensor.new_tensor and isinstance(args[0], StandIn):
            func, device, args = torch.tensor, device or args[0].device, args[1:]
        if func in self.FROM_PYTHON and device is not None and torch.device(device).type == NAME:
            if args and isinstance(args[0], StandIn):
                return args[0].to(**kwargs)
            return func(*args, **kwargs | {"device": "cpu"}).to(device)
        out = func(*args, **kwargs)
        if func == torch.Tensor.data.__set__ and isinstance(args[0], StandIn):  # type: ignore[attr-defined]
            args[0].held = args[1].held
        return out


class _Generator(torch.Generator):
    """A CPU generator that says it is the stand-in's."""

    device = property(lambda self: torch.device(NAME, 0))  # type: ignore[assignment]

    def __new__(cls, *_: Any) -> "_Generator":
        return super().__new__(cls, "cpu")


_torch_generator = torch.Generator


class _AnyGenerator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> Any:
        return (_Generator if torch.device(device).type == NAME else _torch_generator)(device)


class _Backend:
    """`torch.standin`."""

    is_available = staticmethod(lambda: bool(_active))
    is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    synchronize = staticmethod(lambda device=None: None)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)  # it draws from the CPU's generator
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


def _register() -> None:
    """Once a process; other tests do not see it: it is only available inside `standin()`."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    from torch.utils import backend_registration as registration

    class Hook(registration._DummyPrivateUse1Hook):
        def is_available(self) -> bool:
            return bool(_active)

    registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend(), hook=Hook())


@contextlib.contextmanager
def standin() -> Iterator[Transfers]:
    """Makes device `standin:0` usable; yields the waits, to be cleared where counting starts."""
    _register()
    found = Transfers()
    _active.append(found)
    # One thread: torch starts one a device only before the first backward of a process, and lines of our
    # code are read off the stack.
    one_thread = torch.autograd.set_multithreading_enabled(False)
    generator = mock.patch.object(torch, "Generator", _AnyGenerator)
    try:
        with one_thread, generator, _Dispatch(), _Function():
            yield found
    finally:
        _active.pop()
