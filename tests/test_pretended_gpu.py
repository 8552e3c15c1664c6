"""A GPU that is not there: tensors that say they are on `cuda` and compute on the CPU. Whatever mixes devices raises here as it would there, and the numbers must be
those of the CPU. No gradients (autograd asks for a real device), no speed."""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
COPIES = {"copy_", "_to_copy", "_copy_from"}
INDEXING = {
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
}  # the indices, and only they, may come from the CPU
READS = {
    getattr(torch.Tensor, n) for n in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__")
}


class Pretended(torch.Tensor):
    "A tensor on the CPU (`inner`) that says it is on the GPU."

    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"on a GPU that is not there: {self.inner}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def is_gpu(x):
    return isinstance(x, torch.device) and x.type == "cuda" or isinstance(x, str) and x.startswith("cuda")


def inner(x):
    return x.inner if isinstance(x, Pretended) else CPU if is_gpu(x) else x


def outer(out, gpu):
    return tree_map(
        lambda x: Pretended(x) if gpu and isinstance(x, torch.Tensor) and not isinstance(x, Pretended) else x,
        out,
    )


def compute(func, args, kwargs):
    "One operation: rejected where tensors with dimensions come from both devices, as a GPU rejects it."
    name, flat = func._schema.name.split("::")[1], tree_flatten((args, kwargs))[0]
    ours = [x for x in flat if isinstance(x, Pretended)]
    plain = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Pretended)]
    if (
        name not in COPIES
        and ours
        and any(x.dim() for x in plain)
        and not (name in INDEXING and isinstance(args[0], Pretended))
    ):
        raise RuntimeError(f"{name}: tensors on two devices")
    where = kwargs.get("device")
    gpu = (
        is_gpu(where)
        if where is not None
        else isinstance(args[0], Pretended)
        if name == "copy_"
        else bool(ours)
    )
    with _disable_current_modes():
        out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    if func._schema.is_mutable and name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]
    return outer(out, gpu)


class Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class PretendedGpu(TorchFunctionMode):
    "While it runs, `cuda` is a device. reads: how often the host waited for a value."

    def __init__(self):
        super().__init__()
        self.reads, self.inside = 0, Factories()

    def __enter__(self):
        self.inside.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.inside.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READS and isinstance(args[0], Pretended):
            self.reads += 1
            return func(args[0].inner, *args[1:])
        args, kwargs = (tree_map(lambda x: GPU if is_gpu(x) else x, a) for a in (args, kwargs or {}))
        try:
            return func(*args, **kwargs)
        except (
            RuntimeError,
            NotImplementedError,
        ) as error:  # what asks for a real device before it gets to us
            if "not linked with support" not in str(error) and "'CUDA' backend" not in str(error):
                raise
        where, flat = kwargs.get("device"), tree_flatten((args, kwargs))[0]
        if any(isinstance(x, Pretended) for x in flat) and func is not torch.Tensor.__setitem__:
            plain = [
                x
                for x in (flat[:1] if func is torch.Tensor.__getitem__ else flat)
                if isinstance(x, torch.Tensor) and not isinstance(x, Pretended) and x.dim()
            ]
            if plain:
                raise RuntimeError(f"{func.__name__}: tensors on two devices")
        out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
        return outer(out, is_gpu(where) if where is not None else any(isinstance(x, Pretended) for x in flat))


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    with torch.no_grad(), PretendedGpu() as mode:
        yield mode
    torch.__future__.set_swap_module_params_on_conversion(before)


def test_the_pretence_holds(gpu):
    x = torch.arange(3.0).to("cuda")
    assert (
        x.device == GPU
        and (x + x).device == GPU
        and (2 * x).sum().item() == 6
        and gpu.reads == 1
        and x.cpu().device == CPU
    )
    for wrong in (
        lambda: x + torch.ones(3),
        lambda: torch.cat([x, torch.ones(1)]),
        lambda: torch.ones(3)[x.long()],
        lambda: torch.nn.Linear(3, 2)(x),
    ):
        with pytest.raises(RuntimeError, match="two devices"):
            wrong()
    assert torch.nn.Linear(3, 2).to("cuda")(x).device == GPU


def test_crystals_are_sampled_there_as_here(gpu):
    from matgen_nb.symmcd.model import SymmCD
    import matgen_nb.symmcd.staged_sampling  # noqa: F401
    from matgen_nb.symmcd.reverse import SamplingOptions

    there = SymmCD.from_pretrained("symmcd-mp20-small").to("cuda")
    assert {p.device for p in there.parameters()} == {GPU}
    short, long = (
        count(gpu, lambda: there.sample(6, seed=1, options=SamplingOptions(steps=steps, progress=False)))
        for steps in (4, 8)
    )
    here = SymmCD.from_pretrained("symmcd-mp20-small").sample(
        6, seed=1, options=SamplingOptions(steps=4, progress=False)
    )
    for a, b in zip(short[0], here):
        assert np.array_equal(a.crystal.frac_coords, b.crystal.frac_coords) and np.array_equal(
            a.crystal.elements, b.crystal.elements
        )
    assert (long[1] - short[1]) / 4 <= 15, (
        "how often a step makes the host wait, whatever the number of crystals"
    )


def count(gpu, work):
    "(what work() returns, how often the host waited for the device)."
    before = gpu.reads
    return work(), gpu.reads - before


def test_frameworks_are_sampled_there_as_here(gpu):
    from matgen_nb.mofdiff.model import MofDiff
    from matgen_nb.mofdiff.sampling import MofSamplingOptions

    options = MofSamplingOptions(steps=4, progress=False)
    there, here = (
        MofDiff.from_pretrained("mofdiff-small").to(d).sample(2, seed=1, options=options)
        for d in ("cuda", "cpu")
    )
    for a, b in zip(there, here):
        assert np.array_equal(a.coarse.frac_coords, b.coarse.frac_coords) and [
            x.identity for x in a.coarse.blocks
        ] == [x.identity for x in b.coarse.blocks]


def losses(model, data, device):
    "The parts of a model's loss on four structures, with noise from the CPU."
    batch = data.to(device).select(torch.arange(4, device=device))
    return {
        name: float(value)
        for name, value in model.to(device).eval().loss(batch, torch.Generator().manual_seed(0)).items()
    }


def test_losses_there_are_those_here(gpu):
    from matgen_nb.mofdiff.embedding import BlockData, BlockEncoder
    from matgen_nb.mofdiff.hypothetical import embedded_mofs
    from matgen_nb.mofdiff.loss import MofDiff
    from matgen_nb.symmcd.preparing import prepare
    from matgen_nb.symmcd.model import SymmCD

    frameworks, encoder = (
        embedded_mofs().subset(range(6)).trimmed(),
        BlockEncoder.from_pretrained("blocks-small"),
    )
    crystals = prepare("embedded", limit=20, n_jobs=1, progress=None)[0]
    cases = [
        (lambda: SymmCD.from_pretrained("symmcd-mp20-small"), crystals),
        (lambda: BlockEncoder.from_pretrained("blocks-small"), BlockData(frameworks.library)),
        (
            lambda: MofDiff.from_pretrained("mofdiff-small"),
            frameworks.with_embeddings(encoder.encode(frameworks.library)),
        ),
    ]
    for make, data in cases:
        here, there = (losses(make(), data, device) for device in ("cpu", "cuda"))
        assert here == there and len(here) > 3 and np.isfinite(list(here.values())).all()


def test_frameworks_are_assembled_there_as_here(gpu):
    from matgen_nb.mofdiff.assembly import AssemblyOptions, assemble
    from matgen_nb.mofdiff.bonds import textbook_mof
    from matgen_nb.mofdiff.decomposition import decompose
    from matgen_nb.mofdiff.coarse_graining import CoarseMof

    beads = [
        CoarseMof.from_decomposition(decompose(textbook_mof(name)), name) for name in ("HKUST-1", "MIL-53")
    ]
    there, here = (
        assemble(
            beads, seed=2, options=AssemblyOptions(starts=4, generations=1, rotations=512), device=device
        )
        for device in ("cuda", "cpu")
    )
    for a, b in zip(there, here):
        assert a.row["bond_success"] == b.row["bond_success"] and np.array_equal(
            a.crystal.frac_coords, b.crystal.frac_coords
        )
