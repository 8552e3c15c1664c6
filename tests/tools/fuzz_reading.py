#!/usr/bin/env python
"""Damage CIF files at random and look for a reading that contradicts the formula which the file states.

    python tests/tools/fuzz_reading.py                    400 mutated files of built-in structures
    python tests/tools/fuzz_reading.py -n 5000 --seed 7   more of them
    python tests/tools/fuzz_reading.py --folder my_cifs   of the CIF files in a folder, read as frameworks

Every file states a formula. A mutation cuts the file off, drops, doubles or swaps lines, or changes characters, digits, symbols
and operations. A reading is right if it is rejected, or if the atoms have the formula that the (mutated) file states, or if a note says
what is missing; anything else is printed, and the exit status is 1. An exception other than CrystalError is wrong as well.
"""

import argparse
import random
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

from matgen_nb.symmetry.cif import read_cif
from matgen_nb.symmetry.cif_statements import compare_formula, stated_formula
from matgen_nb.symmetry.cif_text import cif_file_text
from matgen_nb.symmetry.crystal import CrystalError

KEYS = "length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"
STRUCTURES = {  # formula, Z, group, cell, sites
    "rutile": (
        "Ti O2",
        2,
        "P 42/m n m",
        (4.594, 4.594, 2.959, 90, 90, 90),
        "Ti1 Ti 0 0 0;O1 O 0.305 0.305 0",
    ),
    "salt": ("Na4 Cl4", None, "F m -3 m", (5.64, 5.64, 5.64, 90, 90, 90), "Na1 Na 0 0 0;Cl1 Cl 0.5 0.5 0.5"),
    "spinel": (
        "Al2 Mg O4",
        8,
        "F d -3 m:2",
        (8.08, 8.08, 8.08, 90, 90, 90),
        "Mg1 Mg 0.125 0.125 0.125;Al1 Al 0.5 0.5 0.5;O1 O 0.2623 0.2623 0.2623",
    ),
    "calcite": (
        "C Ca O3",
        6,
        "R -3 c",
        (4.99, 4.99, 17.06, 90, 90, 120),
        "Ca1 Ca 0 0 0;C1 C 0 0 0.25;O1 O 0.2568 0 0.25",
    ),
    "monoclinic": (
        "Zn O",
        4,
        "P 1 21/c 1",
        (6.1, 7.2, 8.3, 90, 101, 90),
        "Zn1 Zn 0.11 0.22 0.33;O1 O 0.4 0.05 0.2",
    ),
}


def symmetric_text(name, operations):
    "The CIF of a built-in structure with its asymmetric unit, and its operations or its symbol alone."
    import gemmi

    formula, z, group, cell, sites = STRUCTURES[name]
    lines = [f"data_{name}", f"_chemical_formula_sum '{formula}'", f"_space_group_name_H-M_alt '{group}'"]
    lines += [f"_cell_formula_units_Z {z}"] * bool(z) + [
        f"_cell_{key} {value}" for key, value in zip(KEYS, cell)
    ]
    if operations:
        triplets = [op.triplet() for op in gemmi.find_spacegroup_by_name(group).operations()]
        lines += ["loop_", "_space_group_symop_operation_xyz", *(f"'{t}'" for t in triplets)]
    lines += [
        "loop_",
        *(f"_atom_site_{c}" for c in "label type_symbol fract_x fract_y fract_z".split()),
        *sites.split(";"),
    ]
    return "\n".join(lines) + "\n"


def seeds():
    "The texts that are damaged: every structure with operations, with a symbol alone, as our whole cell and as pymatgen's."
    out = []
    for name in STRUCTURES:
        text = symmetric_text(name, True)
        crystal = read_cif(text).crystal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out += [text, symmetric_text(name, False), crystal.to_cif(), crystal.to_pymatgen().to(fmt="cif")]
    return out


def cut(lines, rng):
    return lines[: rng.randrange(4, len(lines))]


def drop(lines, rng):
    first = rng.randrange(len(lines))
    return lines[:first] + lines[first + rng.choice((1, 1, 1, 2, 5)) :]


def double(lines, rng):
    i = rng.randrange(len(lines))
    return lines[:i] + [lines[i]] + lines[i:]


def swap(lines, rng):
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return lines


def letter(lines, rng):
    i = rng.randrange(len(lines))
    if lines[i]:
        k = rng.randrange(len(lines[i]))
        lines[i] = lines[i][:k] + rng.choice("0123456789.-+/' ?xyzCHOFNaPIRm;#_") + lines[i][k + 1 :]
    return lines


def digit(lines, rng):
    places = [(i, m.start()) for i, line in enumerate(lines) for m in re.finditer(r"\d", line)]
    i, k = rng.choice(places)
    lines[i] = lines[i][:k] + rng.choice("0123456789") + lines[i][k + 1 :]
    return lines


def element(lines, rng):
    i = rng.randrange(len(lines))
    lines[i] = re.sub(
        r"\b(Na|Cl|Ti|O|Mg|Al|Ca|C|Zn)\b",
        rng.choice(("K", "O", "S", "Fe", "D", "X", "Nb + Zr")),
        lines[i],
        count=1,
    )
    return lines


def group(lines, rng):
    other = rng.choice(
        (
            "P 1",
            "F m -3 m",
            "P m -3 m",
            "F d -3 m",
            "R -3 c",
            "P 21/c",
            "I 4/m m m",
            "?",
            "nonsense",
            "P 6/m m m",
        )
    )
    return [re.sub(r"(H-M\S*\s+).*", rf"\1'{other}'", line) for line in lines]


MUTATIONS = cut, cut, drop, double, swap, letter, digit, element, group


def mutated(text, rng):
    "The text after one to three mutations."
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        if len(lines) > 5:
            lines = rng.choice(MUTATIONS)(lines, rng)
    return "\n".join(lines) + "\n"


def fault(text, framework=False):
    "(what happened, what is wrong with the reading of a text or '')."
    try:
        reading = read_cif(text, framework=framework)
    except CrystalError:
        return "rejected", ""
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"
    match = re.search(r"(?im)^_chemical_formula_sum\s+(?:'([^'\n]*)'|\"([^\"\n]*)\"|(\S+))", text)
    stated = stated_formula(next(filter(None, match.groups()), "")) if match else {}
    if not stated:
        return "no formula", ""
    verdict = compare_formula(reading.crystal.elements, stated)
    said = any("missing" in note for note in reading.notes)
    if verdict.kind == "same":
        return "agrees", ""
    return (
        ("said", "")
        if said
        else ("wrong", f"{Counter(reading.crystal.elements.tolist())} against {stated}: {reading.notes}")
    )


def run(texts, n, seed, framework=False):
    "Damage `n` texts; returns (counts of what happened, list of (mutated text, what is wrong))."
    rng, counts, wrong = random.Random(seed), Counter(), []
    for i in range(n):
        text = mutated(texts[i % len(texts)], rng)
        outcome, problem = fault(text, framework)
        counts[outcome] += 1
        if problem:
            wrong.append((text, problem))
    return counts, wrong


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=400, help="mutated files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="CIF files to damage instead of the built-in ones")
    args = parser.parse_args()
    texts = [cif_file_text(p) for p in sorted(args.folder.rglob("*.cif"))] if args.folder else seeds()
    counts, wrong = run(texts, args.n, args.seed, framework=bool(args.folder))
    print(", ".join(f"{outcome}: {count}" for outcome, count in counts.most_common()))
    for text, problem in wrong:
        print(f"--- {problem}\n{text[:1500]}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
