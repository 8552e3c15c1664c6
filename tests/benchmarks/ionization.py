"""Write matgen_nb/data/ionization.csv: what charge equilibration (lesson 4.42) knows of each element.

    python tests/benchmarks/ionization.py

One line an element: number, symbol, ion (the charge that an atom of a framework is described around: 0 for non-metals, the
usual charge of the ion for metals), lower and upper: the energies (eV) that the last electron before and the first one beyond
that charge cost. For ion 0 these are electron affinity and first ionisation energy, for Zn2+ the second and the third. The
ionisation energies are those of the NIST Atomic Spectra Database (https://doi.org/10.18434/T4W30F), the electron affinities
those of C. Ning and Y. Lu, J. Phys. Chem. Ref. Data 51, 021502 (2022), both as pymatgen gives them. Of hydrogen the affinity is
the -2 eV that C. E. Wilmer, K. C. Kim and R. Q. Snurr fitted (J. Phys. Chem. Lett. 3, 2506, 2012); a negative affinity of
another element counts as 0. Elements without such an energy are left out.
"""

from pathlib import Path

from kept import write_rows

FILE = Path(__file__).parents[2] / "matgen_nb" / "data" / "ionization.csv"
COLUMNS = ("number", "symbol", "ion", "lower", "upper")
HYDROGEN = -2.0
IONS = {
    1: "Li Na K Rb Cs Ag Au Tl",
    2: "Be Mg Ca Sr Ba Mn Co Ni Cu Zn Mo Ru Rh Pd Cd Sn Pt Hg Pb",
    3: "Al Sc V Cr Fe Ga Y In Sb La Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Ir Bi Re",
    4: "Ti Zr Ce Hf Th U Np Pu",
    5: "Nb Ta",
    6: "W",
}


def ion_of(symbol):
    "The charge that an element is described around."
    return next((charge for charge, names in IONS.items() if symbol in names.split()), 0)


def line_of(element):
    "The line of an element of pymatgen; None where an energy is not known."
    ion = ion_of(element.symbol)
    energies = [element.electron_affinity, *element.ionization_energies][ion : ion + 2]
    if len(energies) < 2 or None in energies:
        return None
    lower = HYDROGEN if element.symbol == "H" else max(energies[0], 0.0)
    return dict(number=element.Z, symbol=element.symbol, ion=ion, lower=lower, upper=energies[1])


if __name__ == "__main__":
    from pymatgen.core import Element

    found = [line_of(Element.from_Z(z)) for z in range(1, 95)]
    write_rows(FILE, COLUMNS, [row for row in found if row], "{:.4f}")
