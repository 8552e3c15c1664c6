"""The metrics of the released programs (CDVAE, DiffCSP, SymmCD: compute_metrics.py), written anew after their description.

    python released_metrics.py CRYSTALS.json RESULT.json

Needs matminer and smact below 3, which matgen_nb does not: an environment of its own, and nothing of this package is
imported. CRYSTALS.json: {"samples": [...], "reference": [...]}, each crystal a dict of lattice, elements, frac_coords.
For every crystal, as there: the composition rule of smact with all combinations of oxidation states, the shortest
distance, a CrystalNN fingerprint of EVERY atom (matminer, preset "ops"), a Magpie fingerprint, and the space group at
0.01 A; then coverage and the two Wasserstein distances. One process. RESULT.json: metrics, CPU seconds, rows."""

import itertools
import json
import sys
import time
import warnings
from collections import Counter

import numpy as np

CUTOFFS = 0.4, 10.0  # of the structure and of the composition fingerprint, for MP-20


def composition_is_valid(symbols, counts):
    "Charge neutrality and Pauling's electronegativity order, over all combinations of oxidation states."
    import smact
    from smact.screening import pauling_test

    elements = list(smact.element_dictionary(tuple(symbols)).values())
    if len(set(symbols)) == 1 or all(s in smact.metals for s in symbols):
        return True
    negativities = [e.pauling_eneg for e in elements]
    for states in itertools.product(*(e.oxidation_states for e in elements)):
        neutral, _ = smact.neutral_ratios(states, stoichs=[(c,) for c in counts], threshold=max(counts))
        if not neutral:
            continue
        try:
            ordered = pauling_test(states, negativities)
        except TypeError:  # an element without an electronegativity
            ordered = True
        if ordered:
            return True
    return False


class Metrics:
    "Featurizers that are made once, and the row of a crystal."

    def __init__(self):
        from matminer.featurizers.composition.composite import ElementProperty
        from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

        self.site = CrystalNNFingerprint.from_preset("ops")
        self.composition = ElementProperty.from_preset("magpie")

    def row(self, crystal):
        "Validity, fingerprints, density, elements and space group of one crystal."
        from pymatgen.core import Composition, Structure
        from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

        structure = Structure(crystal["lattice"], crystal["elements"], crystal["frac_coords"])
        amounts = Counter(s.symbol for s in structure.species)
        divisor = np.gcd.reduce(list(amounts.values()))
        distances = structure.distance_matrix + 10.5 * np.eye(len(structure))
        row = dict(
            comp_valid=composition_is_valid(list(amounts), [int(n // divisor) for n in amounts.values()]),
            struct_valid=bool(distances.min() >= 0.5 and structure.volume >= 0.1),
            density=float(structure.density),
            n_elements=len(amounts),
            magpie=self.composition.featurize(Composition(amounts)),
            space_group=SpacegroupAnalyzer(structure, symprec=0.01).get_space_group_number(),
        )
        try:
            sites = [self.site.featurize(structure, i) for i in range(len(structure))]
            row["fingerprint"] = np.mean(sites, axis=0).tolist()
        except Exception as error:
            row |= dict(fingerprint=None, failure=str(error)[:100])
        row["valid"] = row["comp_valid"] and row["struct_valid"] and row["fingerprint"] is not None
        return row


def coverage(samples, reference, scaler):
    "Recall and precision, each with the nearest fingerprint of either kind; scaler: (means, deviations) of Magpie's."
    from scipy.spatial.distance import cdist

    whole = lambda rows: [r for r in rows if r["fingerprint"] is not None]
    scaled = lambda rows: np.nan_to_num(
        (np.array([r["magpie"] for r in rows], float) - scaler[0]) / scaler[1]
    )
    mine, theirs = whole(samples), whole(reference)
    structure = cdist([r["fingerprint"] for r in mine], [r["fingerprint"] for r in theirs])
    composition = cdist(scaled(mine), scaled(theirs))
    near = lambda axis: (structure.min(axis) <= CUTOFFS[0]) & (composition.min(axis) <= CUTOFFS[1])
    return dict(coverage_recall=float(near(0).mean()), coverage_precision=float(near(1).sum() / len(samples)))


def main():
    from scipy.stats import wasserstein_distance

    warnings.filterwarnings("ignore")
    given = json.load(open(sys.argv[1], encoding="utf-8"))
    metrics = Metrics()
    metrics.row(given["reference"][0])  # imports and tables are not counted
    start = time.process_time()
    samples, reference = ([metrics.row(c) for c in given[k]] for k in ("samples", "reference"))
    found = {k: float(np.mean([r[k] for r in samples])) for k in ("comp_valid", "struct_valid", "valid")}
    found |= coverage(samples, reference, np.array(given["scaler"]))
    for name in ("density", "n_elements"):
        real, mine = [r[name] for r in reference], [r[name] for r in samples if r["valid"]]
        found[f"wasserstein_{name}"] = float(wasserstein_distance(mine, real))
    seconds = time.process_time() - start
    kept = [{k: r[k] for k in ("comp_valid", "struct_valid", "space_group", "fingerprint")} for r in samples]
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(dict(metrics=found, cpu_seconds=seconds, rows=kept), file)


if __name__ == "__main__":
    main()
