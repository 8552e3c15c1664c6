#!/usr/bin/env python
"""Write matgen_nb/data/core_mof.csv: what lesson 4.19 shows of the real frameworks of CoRE MOF.

    matgen prepare mofs core-mof --measure --out real.safetensors
    python tests/benchmarks/core_mof_statistics.py real.safetensors

The other subsets are counted only (set: their file's name without ending), and may be added later; then the rows of the first
command stay as they are:

    python tests/benchmarks/core_mof_statistics.py --counted 2014.safetensors 2019-FSR.safetensors all.safetensors

One line a number (part, set, name, low, high, value). part "files": how many structures were read and kept, how many distinct
blocks they have; "checks": how many of those that were kept pass all chemical checks of lesson 4.37, and how many fail each;
"lost": how many structures go for each kind of reason (from real.run.json); "histogram": frameworks with a
property between low and high, of the real ones and of those that ship with the package; "cost": what grows with the number of
blocks in the cell (low). Ten minutes of one thread.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from kept import rows_but, write_rows
from matgen_nb import MofDiff, assemble
from matgen_nb.mofdiff.assembly import AssemblyOptions
from matgen_nb.mofdiff.bonds import Mof, textbook_mof
from matgen_nb.mofdiff.checks import CHECKS, Environment
from matgen_nb.mofdiff.core_mof import LEFT_OUT, read_core_mof
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.decomposition import decompose
from matgen_nb.mofdiff.hypothetical import embedded_mofs
from matgen_nb.mofdiff.model import fine_tuned_mofdiff
from matgen_nb.mofdiff.net_fitting import carry, placed_net
from matgen_nb.mofdiff.nets import decomposition_graph, rcsr_name
from matgen_nb.parallel import time_limit
from matgen_nb.scale.runs import record_of
from matgen_nb.utils import MatgenError

DATA = Path(__file__).resolve().parents[2] / "matgen_nb" / "data"
COLUMNS = ("part", "set", "name", "low", "high", "value")
EDGES = dict(
    num_blocks=np.arange(0.5, 41.5, 2),
    density=np.arange(0, 4.01, 0.2),
    void_fraction=np.arange(0, 1.01, 0.05),
    lcd=np.arange(0, 40.1, 2),
)
SIZES = (10, 20, 30, 40)
BATCH = 16


def reasons_of(path):
    "(reason, number) of what was not kept, from the record of a prepared file."
    return json.loads(record_of(path).read_text(encoding="utf-8"))["reasons"]


def values_of(data, name):
    "A property of every framework (n,), those that are unknown left out."
    if name == "num_blocks":
        return data.num_blocks.numpy()
    values = data.properties[:, data.property_names.index(name)].numpy()
    return values[np.isfinite(values)]


def file_rows(data, kinds, which="real"):
    "How many structures were read and kept, their blocks, and why the others go."
    repeated = sum(n for reason, n in kinds if "as another" in reason or "evaluation" in reason)
    identities = Counter(block.identity for block in data.library)
    counts = dict(
        read=len(data) + sum(n for _, n in kinds),
        prepared=len(data) + repeated,
        kept=len(data),
        conformers=len(data.library),
        blocks=len(identities),
        metal_blocks=len({block.identity for block in data.library if block.is_metal}),
    )
    yield from (dict(part="files", set=which, name=name, value=n) for name, n in counts.items())
    yield from (dict(part="lost", set=which, name=reason, value=n) for reason, n in kinds)


def failed_checks(text):
    "Names of the chemical checks that a structure, a CIF text, does not pass."
    with time_limit(20):
        mof = Mof.from_cif(text)
        environment = Environment(mof)
        return [name for name, check in CHECKS.items() if not check(mof, environment)]


def check_rows(data):
    "How many of the structures behind a prepared set pass all checks, and how many fail each."
    kept, failed = set(data.names), []
    for name, text, _ in read_core_mof("2019-ASR"):
        if name in kept:
            failed.append(failed_checks(text))
    yield dict(part="checks", set="real", name="passed", value=sum(not f for f in failed))
    for name in CHECKS:
        yield dict(part="checks", set="real", name=name, value=sum(name in f for f in failed))


def histogram_rows(sets):
    "How many frameworks of each set lie in each bin; the last bin takes what is larger."
    for which, data in sets.items():
        for name, edges in EDGES.items():
            counts, _ = np.histogram(np.clip(values_of(data, name), edges[0], edges[-1] - 1e-6), edges)
            for low, high, n in zip(edges, edges[1:], counts):
                yield dict(
                    part="histogram", set=which, name=name, low=f"{low:g}", high=f"{high:g}", value=int(n)
                )


def training_step(data):
    "(CPU s, MB kept for the backward pass) of one training step of the shipped model on some frameworks."
    model = MofDiff.from_pretrained("mofdiff-small")
    size, generator = len(model.stat_feature_mean), torch.Generator().manual_seed(0)
    data = data.with_properties(model.property_names)
    data = data.with_embeddings(torch.randn(len(data.library), size, generator=generator))
    model, batch, kept = fine_tuned_mofdiff(model, data), data.select(range(len(data))), {}
    note = lambda s: kept.setdefault(s.data_ptr(), s.nbytes())
    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (note(t.untyped_storage()), t)[1], lambda t: t):
        loss = model.loss(batch, generator)["loss"]
    loss.backward()
    return time.process_time() - start, sum(kept.values()) / 2**20


def net_seconds(data, rows):
    "CPU s in which the net of one framework is read and fitted to its own blocks, mean."
    times, _ = [], rcsr_name(decomposition_graph(decompose(textbook_mof("IRMOF-1"))))  # reads the names once
    for row in rows:
        start = time.process_time()
        try:
            carry(placed_net(data[row]), data[row].blocks)
        except MatgenError:  # its beads show no net
            continue
        times.append(time.process_time() - start)
    return float(np.mean(times))


def assembly_seconds(data, rows):
    "CPU s in which one framework is assembled from its beads, mean."
    start = time.process_time()
    for row in rows:
        assemble(data[row], options=AssemblyOptions(starts=32, generations=2))
    return (time.process_time() - start) / len(rows)


def cost_rows(data):
    "What a framework of 10, 20, 30, 40 blocks costs, in CPU time of one thread and memory."
    for size in SIZES:
        near = (data.num_blocks - size).abs().argsort(stable=True)
        rows = [i for i in near.tolist() if data.num_blocks[i] <= size][:BATCH]
        steps = [training_step(data.subset(rows).trimmed()) for _ in range(3)]
        found = {
            "training step, ms": 1e3 * min(seconds for seconds, _ in steps) / BATCH,
            "training step, MB": steps[0][1] / BATCH,
            "net read and fitted, ms": 1e3 * net_seconds(data, rows),
            "assembly, s": assembly_seconds(data, rows[:4]),
        }
        for name, value in found.items():
            yield dict(part="cost", set="real", name=name, low=size, high=size, value=f"{value:.3g}")


def counted_rows(path):
    "The counts of another prepared file of CoRE MOF, none of whose frameworks is one that is left out."
    data, codes = MofData.load(path), read_core_mof("all").codes
    left = [name for name in data.names if name.startswith(LEFT_OUT) or codes.get(name) in LEFT_OUT]
    assert not left, f"{path} holds frameworks that are kept for evaluation: {left}"
    return [*file_rows(data, reasons_of(path), path.stem)]


def all_rows(path):
    "All rows of the set that the lesson shows."
    real = MofData.load(path)
    both = histogram_rows(dict(real=real, hypothetical=embedded_mofs()))
    return [*file_rows(real, reasons_of(path)), *check_rows(real), *both, *cost_rows(real)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, nargs="?", help="prepared file, its .run.json beside it")
    parser.add_argument("--counted", type=Path, nargs="*", default=[], help="other subsets, the same")
    given = parser.parse_args()
    torch.set_num_threads(1)
    new = all_rows(given.real) if given.real else []
    new += [row for path in given.counted for row in counted_rows(path)]
    kept = rows_but(DATA / "core_mof.csv", "set", {row["set"] for row in new})
    write_rows(DATA / "core_mof.csv", COLUMNS, [*kept, *new])


if __name__ == "__main__":
    main()
