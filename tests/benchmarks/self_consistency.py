"""The experiment behind lesson 3.13: eight candidates for each request, their denoising loss and their energy.

    python tests/benchmarks/self_consistency.py TRAIN.csv.gz [--requests 250] [--out consistency.csv]

TRAIN.csv.gz: crystals with the columns formation_energy_per_atom and e_above_hull (lesson 3.20). About six
minutes of one CPU thread. Group and Wyckoff positions are sampled once for each request.
"""

import argparse

import torch
from kept import write_rows

from matgen_nb import SymmCD
from matgen_nb.symmcd.energy import EnergyOptions, evaluate_energies
from matgen_nb.symmcd.hull import energy_reference, energy_scale
from matgen_nb.symmcd.potential import get_potential
from matgen_nb.symmcd.reverse import SamplingOptions
from matgen_nb.symmcd.staged_sampling import choose_elements, choose_sites, geometry_of, request_like

COLUMNS = ("candidate", "request", "space_group", "loss", "e_above_hull")


def candidates_of(model, requests, count, options, seed=1):
    "`count` lists of samples for the same requests, which have their sites."
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(requests)), key=lambda i: requests[i].num_orbits)
    for _ in range(count):
        found = [None] * len(requests)
        for first in range(0, len(order), options.batch_size):
            rows = order[first : first + options.batch_size]
            decided = choose_elements(model, [requests[i] for i in rows], generator, options.element_steps)
            for i, sample in zip(rows, geometry_of(model, decided, generator, options)):
                found[i] = sample
        yield found


def sited_requests(model, n, seed, options):
    "Requests of n samples: their groups and Wyckoff positions, elements left open."
    from dataclasses import replace

    samples = model.sample(n, seed=seed, options=options)
    requests = [replace(request_like(s.unit), elements=None) for s in samples]
    return choose_sites(model, requests, torch.Generator().manual_seed(seed), options.site_steps)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train")
    parser.add_argument("--requests", type=int, default=250)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--out", default="consistency.csv")
    args = parser.parse_args()
    model = SymmCD.from_pretrained("symmcd-mp20-small").eval()
    options, potential = SamplingOptions(candidates=1, progress=False), get_potential("chgnet")
    scale = energy_scale(energy_reference(args.train), potential)
    requests = sited_requests(model, args.requests, 7, options)
    rows = []
    for c, samples in enumerate(candidates_of(model, requests, args.candidates, options)):
        units = [s.unit for s in samples]
        losses = model.denoising_loss(units, torch.Generator().manual_seed(0), noises=3)
        found = evaluate_energies(
            [s.crystal for s in samples],
            scale,
            potential,
            units,
            options=EnergyOptions(try_exchanges=False, progress=False),
        )
        for i, row in enumerate(found.table):
            figures = float(losses[i]), row["e_above_hull"]
            rows.append(dict(zip(COLUMNS, (c, i, units[i].space_group, *figures))))
        write_rows(args.out, COLUMNS, rows, "{:.4f}")


if __name__ == "__main__":
    main()
