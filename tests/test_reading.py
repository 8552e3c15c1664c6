"""Reading a CIF: what is symmetry, what is one atom, and whether the result is what the file states. Kinds, several inputs each."""

import csv
import gzip
import itertools
import re

import numpy as np
import pytest
from conftest import ROOT

from matgen_nb.symmetry.cif import read_cif
from matgen_nb.symmetry.cif_atoms import close_pairs
from matgen_nb.symmetry.cif_statements import settings_of_symbol, stated_formula, tidy_symbol
from matgen_nb import Crystal
from matgen_nb.symmetry.crystal import CrystalError, min_distance

CASES = ROOT / "tests" / "cases"
CUBE = (5.64, 5.64, 5.64, 90, 90, 90)
SALT = "Na1 Na 0 0 0", "Cl1 Cl 0.5 0.5 0.5"
CELL = "length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"


def cif(*sites, cell=CUBE, head="", columns="label type_symbol fract_x fract_y fract_z", tail=""):
    "The text of a small CIF; head: further items, such as the symbol of the group."
    lines = [
        "data_t",
        *(f"_cell_{k} {v}" for k, v in zip(CELL, cell)),
        head,
        "loop_",
        *(f"_atom_site_{c}" for c in columns.split()),
        *sites,
        tail,
    ]
    return "\n".join(filter(None, lines)) + "\n"


def symbol(text, *more):
    "Items that state a group's symbol, and others."
    return "\n".join([f"_symmetry_space_group_name_H-M '{text}'", *more])


def formula(text, z=None):
    return f"_chemical_formula_sum '{text}'" + (f"\n_cell_formula_units_Z {z}" if z else "")


def operations(*triplets):
    return "\n".join(["loop_", "_space_group_symop_operation_xyz", *(f"'{t}'" for t in triplets)])


def rejected(text, *words, **how):
    with pytest.raises(CrystalError) as caught:
        read_cif(text, **how)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def cases(half):
    return list(csv.DictReader((CASES / half / "index.csv").open(encoding="utf-8")))


ATOMS = {
    "hm_full_symbol": 8,
    "hm_rhombohedral_suffix": 10,
    "hm_shelx_parentheses": 8,
    "origin_not_stated": 8,
    "origin_code_1": 8,
    "rhombohedral_cell_by_number": 2,
    "primitive_cell_named_F": None,
    "only_identity_listed": 8,
    "operations_no_group": None,
    "equivalent_atoms_listed_twice": 4,
    "magnetic_operations": 6,
    "operations_question_mark": 8,
    "mixed_type_symbol": None,
    "formula_has_H_sites_do_not": 4,
    "dummy_site": 2,
    "byte_order_mark": 8,
    "two_structures": 8,
    "quoted_group_number": 2,
    "single_site_without_loop": 1,
}
SAID = {
    "formula_has_H_sites_do_not": "hydrogen",
    "dummy_site": "C1",
    "two_structures": "data_two",
    "only_identity_listed": "was expanded",
    "equivalent_atoms_listed_twice": "Zn2",
    "rhombohedral_cell_by_number": "R -3 m:R",
}


@pytest.mark.parametrize("row", cases("crystals"), ids=lambda row: row["file"])
def test_the_shared_cases(row):
    path, name = CASES / "crystals" / row["file"], row["file"].removesuffix(".cif")
    if ATOMS[name] is None:
        rejected(path, row["file"])
        return
    reading = read_cif(path)
    assert len(reading.crystal) == ATOMS[name] and len(Crystal.from_cif(path)) == ATOMS[name]
    assert min_distance(reading.crystal) > 0.5 and SAID.get(name, "") in "; ".join(reading.notes)


# --- symbols ---


@pytest.mark.parametrize(
    "text, expected",
    [
        ("P2(1)/c", ("P21/c", "")),
        ("P 2(1) 2(1) 2(1)", ("P 21 21 21", "")),
        ("P2(1)", ("P21", "")),
        ("P-1 (2)", ("P-1", "")),
        ("Fm-3m (225)", ("Fm-3m", "")),
        ("F d -3 m :2", ("F d -3 m", "2")),
        ("F d -3 m S", ("F d -3 m", "1")),
        ("F d -3 m Z", ("F d -3 m", "2")),
        ("R -3 c HR", ("R -3 c", "H")),
        ("R -3 c RS", ("R -3 c", "R")),
        ("R-3m:r", ("R-3m", "R")),
        ("P6~3~/mmc", ("P63/mmc", "")),
        ("P 6_3/m m c", ("P 63/m m c", "")),
        ("F M -3 M", ("F m -3 m", "")),
        ("P3 (143)", ("P3", "")),
    ],
)
def test_symbols_are_tidied(text, expected):
    assert tidy_symbol(text) == expected


@pytest.mark.parametrize(
    "text, number, first",
    [
        ("F 4/m -3 2/m", 225, "F m -3 m"),
        ("P 4/m 2/m 2/m", 123, "P 4/m m m"),
        ("P 21/n 21/m 21/a", 62, "P n m a"),
        ("C 2/m 2/c 21/m", 63, "C m c m"),
        ("R -3 2/c", 167, "R -3 c:H"),
        ("F 41/d -3 2/m", 227, "F d -3 m:1"),
        ("P 63/m 2/m 2/c", 194, "P 63/m m c"),
        ("P 6/m 2/m 2/m", 191, "P 6/m m m"),
        ("I 41/a 2/m 2/d:2", 141, "I 41/a m d:2"),
        ("Fd-3mZ", 227, "F d -3 m:2"),
        ("P 21/b", 14, None),
        ("P 1 21/n 1", 14, "P 1 21/n 1"),
        ("Fm3m", 225, "F m -3 m"),
        ("P 2(1)/c", 14, "P 1 21/c 1"),
        ("P b n m", 62, "P b n m"),
        ("R -3 m R", 166, "R -3 m:R"),
        ("I4/mcm", 140, "I 4/m c m"),
        ("P4(2)/mnm", 136, "P 42/m n m"),
        ("F 4/m 3bar 2/m", 225, "F m -3 m"),
    ],
)
def test_symbols_are_known(text, number, first):
    import gemmi

    found = settings_of_symbol(text)
    assert found and gemmi.find_spacegroup_by_name(found[0]).number == number and first in (None, found[0])


def test_every_symbol_of_the_table_is_known_in_all_its_forms():
    "gemmi's 564 settings: their own symbols, spglib's full symbols, and SHELX's parentheses name the same group."
    import gemmi
    import spglib

    for group in gemmi.spacegroup_table():
        for text in (
            group.xhm(),
            group.hm.replace(" ", ""),
            re.sub(r"(?<=[ A-Z])([2346])([1-5])(?=[ /]|$)", r"\1(\2)", group.hm),
        ):
            found = settings_of_symbol(text)
            assert found and gemmi.find_spacegroup_by_name(found[0]).number == group.number, (text, found)
        assert settings_of_symbol(group.xhm())[0] == group.xhm()
    for hall in range(1, 531):
        kind = spglib.get_spacegroup_type(hall)
        found = settings_of_symbol(kind.international_full.replace("_", ""))
        assert found and gemmi.find_spacegroup_by_name(found[0]).number == kind.number, (
            kind.international_full,
            found,
        )


@pytest.mark.parametrize("text", ["F x -3 q", "Pbogus", "Q m m m", "unknown", "P 7"])
def test_an_unknown_symbol_without_operations_is_named(text):
    rejected(cif(*SALT, head=symbol(text)), text)
    assert len(read_cif(cif(*SALT, head=symbol(text) + "\n" + operations("x,y,z", "-x,-y,-z"))).crystal) == 2


def test_an_unknown_symbol_beside_a_known_number():
    reading = read_cif(cif(*SALT, head=symbol("F bogus", "_space_group_IT_number 225")))
    assert len(reading.crystal) == 8 and "F bogus" in "; ".join(reading.notes)


def test_no_symmetry_at_all_is_p1_and_said():
    reading = read_cif(cif(*SALT))
    assert len(reading.crystal) == 2 and "no symmetry" in reading.notes[0]


@pytest.mark.parametrize("empty", ["?", ".", "''"])
@pytest.mark.parametrize(
    "tag",
    [
        "_symmetry_equiv_pos_as_xyz",
        "_space_group_symop_operation_xyz",
        "_space_group_name_Hall",
        "_symmetry_Int_Tables_number",
        "_space_group_IT_number",
    ],
)
def test_unknown_values_fall_back_to_the_symbol(tag, empty):
    assert len(read_cif(cif(*SALT, head=symbol("F m -3 m", f"{tag} {empty}"))).crystal) == 8
    assert len(read_cif(cif(*SALT, head=symbol("F m -3 m", "loop_", tag, empty, empty))).crystal) == 8


# --- origins, axes ---

SPINEL = {
    1: ("Mg Mg 0 0 0", "Al Al 0.625 0.625 0.625", "O O 0.3873 0.3873 0.3873"),
    2: ("Mg Mg 0.125 0.125 0.125", "Al Al 0.5 0.5 0.5", "O O 0.2623 0.2623 0.2623"),
}


@pytest.mark.parametrize("origin", [1, 2])
@pytest.mark.parametrize("stated", ["F d -3 m", "Fd-3m", "F 41/d -3 2/m", "number"])
def test_the_formula_decides_between_two_origins(origin, stated):
    head = "_space_group_IT_number 227" if stated == "number" else symbol(stated)
    reading = read_cif(
        cif(*SPINEL[origin], cell=(8.08,) * 3 + (90,) * 3, head=head + "\n" + formula("Al2 Mg O4", 8))
    )
    assert reading.crystal.formula == "MgAl2O4" and len(reading.crystal) == 56


@pytest.mark.parametrize("stated", ["F d -3 m:1", "F d -3 m S", "F d -3 m:2", "F d -3 m Z"])
def test_the_other_origin_is_taken_and_said_where_the_stated_one_contradicts_the_formula(stated):
    origin = 2 if stated.endswith(("1", "S")) else 1
    reading = read_cif(
        cif(*SPINEL[origin], cell=(8.08,) * 3 + (90,) * 3, head=symbol(stated, formula("Al2 Mg O4")))
    )
    assert len(reading.crystal) == 56 and "agrees with the stated formula better" in "; ".join(reading.notes)


def test_the_code_of_the_origin_counts():
    for code, origin in (("1", 1), ("2", 2)):
        head = symbol("F d -3 m", f"_space_group_IT_coordinate_system_code {code}")
        assert len(read_cif(cif(*SPINEL[origin], cell=(8.08,) * 3 + (90,) * 3, head=head)).crystal) == 56


@pytest.mark.parametrize(
    "head",
    [
        "_space_group_IT_number 166",
        symbol("R -3 m"),
        symbol("R -3 m RS"),
        symbol("R -3 m :R"),
        symbol("R-3m (166)"),
        symbol("R -3 2/m"),
    ],
)
@pytest.mark.parametrize("with_formula", [True, False])
def test_rhombohedral_and_hexagonal_axes_follow_the_cell(head, with_formula):
    head = head + "\n" + formula("Bi2") if with_formula else head
    reading = read_cif(cif("Bi1 Bi 0.2339 0.2339 0.2339", cell=(4.746,) * 3 + (57.24,) * 3, head=head))
    assert len(reading.crystal) == 2
    if ":R" not in head and "RS" not in head:
        hexagonal = read_cif(
            cif("Bi1 Bi 0 0 0.2339", cell=(4.546, 4.546, 11.863, 90, 90, 120), head=head.replace("Bi2", "Bi"))
        )
        assert len(hexagonal.crystal) == 6


def test_a_monoclinic_cell_with_another_unique_axis():
    sites = "Zn1 Zn 0.11 0.22 0.33", "O1 O 0.4 0.05 0.2"
    for head in (symbol("P 21/b"), symbol("P 1 1 21/b"), "_space_group_IT_number 14"):
        reading = read_cif(cif(*sites, cell=(6.1, 7.2, 8.3, 90, 90, 101), head=head))
        assert len(reading.crystal) == 8


# --- operations ---


@pytest.mark.parametrize(
    "cell", [(3.988, 3.988, 3.988, 60, 60, 60), (5, 5.3, 5.64, 90, 90, 90), (5, 5, 5, 90, 95, 90)]
)
@pytest.mark.parametrize(
    "head", [symbol("F m -3 m"), "_space_group_IT_number 225", operations("x,y,z", "y,z,x", "z,x,y")]
)
def test_operations_must_keep_the_cell(cell, head):
    if cell[3] == 60 and "loop_" in head:
        assert len(read_cif(cif(*SALT, cell=cell, head=head)).crystal) == 2
    else:
        rejected(cif(*SALT, cell=cell, head=head), "cell")


@pytest.mark.parametrize(
    "triplets", [("x,y,z", "x-y,x,z"), ("x,y,z", "-x,-y,-z", "x+1/2,y,z"), ("x,y,z", "y,z,x")]
)
def test_operations_must_form_a_group(triplets):
    rejected(cif(*SALT, head=operations(*triplets)), "no group")


@pytest.mark.parametrize("triplets", [("x,y,z", "half,y,z"), ("x,y", "y,x"), ("x1,x2,x3,x4",)])
def test_operations_that_cannot_be_read(triplets):
    rejected(cif(*SALT, head=operations(*triplets)))


def test_operations_win_over_the_symbol():
    reading = read_cif(
        cif(
            *SALT,
            head=symbol("P b c a")
            + "\n"
            + operations("x,y,z", "-x,-y,-z", "x+1/2,y+1/2,z", "1/2-x,1/2-y,-z"),
        )
    )
    assert len(reading.crystal) == 4 and "Pbca" not in reading.crystal.formula


@pytest.mark.parametrize("identity", ["x, y, z", "+x,+y,+z", "X,Y,Z"])
@pytest.mark.parametrize("stated, atoms", [("Na4 Cl4", 8), ("Na Cl", None), ("", None)])
def test_the_identity_alone_beside_a_symbol(identity, stated, atoms):
    head = symbol("F m -3 m", formula(stated) if stated else "") + "\n" + operations(identity)
    if atoms is None:
        rejected(cif(*SALT, head=head), "only x,y,z")
    else:
        assert len(read_cif(cif(*SALT, head=head)).crystal) == atoms


@pytest.mark.parametrize("stated", ["Na4 Cl4", "Na Cl", ""])
def test_the_identity_alone_beside_a_symbol_with_all_atoms_listed(stated):
    crystal = Crystal.from_cif(cif(*SALT, head=symbol("F m -3 m")))
    sites = [
        f"{'Na' if z == 11 else 'Cl'}{i} {'Na' if z == 11 else 'Cl'} {x} {y} {w}"
        for i, (z, (x, y, w)) in enumerate(zip(crystal.elements, crystal.frac_coords))
    ]
    reading = read_cif(
        cif(*sites, head=symbol("F m -3 m", formula(stated) if stated else "") + "\n" + operations("x,y,z"))
    )
    assert len(reading.crystal) == 8 and "read as P 1" in "; ".join(reading.notes)


def test_a_list_without_the_centrings_is_completed_where_the_formula_says_so():
    import gemmi

    point = [op.triplet() for op in gemmi.find_spacegroup_by_name("F m -3 m").operations().sym_ops]
    reading = read_cif(cif(*SALT, head=symbol("F m -3 m", formula("Na4 Cl4")) + "\n" + operations(*point)))
    assert len(reading.crystal) == 8 and "was expanded" in "; ".join(reading.notes)


def test_magnetic_operations_with_centrings():
    head = "\n".join(
        [
            "loop_",
            "_space_group_symop_magn_operation.xyz",
            "x,y,z,+1",
            "-x,-y,-z,-1",
            "loop_",
            "_space_group_symop_magn_centering.xyz",
            "x,y,z,+1",
            "x+1/2,y+1/2,z+1/2,-1",
        ]
    )
    assert len(read_cif(cif("Mn1 Mn 0.1 0.2 0.3", head=head)).crystal) == 4
    rejected(cif("Mn1 Mn 0.1 0.2 0.3", head="_space_group_magn.name_BNS \"P 4_2'/m n m'\""), "not known")


# --- coincident atoms ---


@pytest.mark.parametrize("digits", [2, 3, 4])
def test_equivalent_atoms_listed_twice(digits):
    "Wurtzite with both zinc atoms of the orbit, rounded."
    third, two = round(1 / 3, digits), round(2 / 3, digits)
    sites = f"Zn1 Zn {third} {two} 0", f"Zn2 Zn {two} {third} 0.5", f"S1 S {third} {two} 0.375"
    reading = read_cif(
        cif(*sites, cell=(3.82, 3.82, 6.26, 90, 90, 120), head=symbol("P 63 m c", formula("Zn S")))
    )
    assert len(reading.crystal) == 4 and "merged" in "; ".join(reading.notes)


@pytest.mark.parametrize("off", [0.0, 0.002, 0.012, 0.03])
def test_an_atom_near_a_special_position_is_one_atom(off):
    reading = read_cif(cif(f"Na1 Na {off} 0 0", "Cl1 Cl 0.5 0.5 0.5", head=symbol("F m -3 m")))
    assert len(reading.crystal) == 8 and min_distance(reading.crystal) > 2


@pytest.mark.parametrize("gap, merged", [(0.0, True), (0.003, True), (0.03, False), (0.08, False)])
def test_the_same_element_twice_in_p1(gap, merged):
    text = cif(*SALT, f"Na2 Na {gap} 0 1.0")
    if merged:
        reading = read_cif(text)
        assert len(reading.crystal) == 2 and "merged" in "; ".join(reading.notes)
    else:
        rejected(text, "overlap", "Na2")


@pytest.mark.parametrize("gap", [0.0, 0.003, 0.05])
def test_two_elements_at_one_place_are_rejected(gap):
    rejected(cif(*SALT, f"K1 K {gap} 0 0"), "overlap", "K1")


def test_generated_structures_keep_their_contacts_where_that_is_requested():
    text = cif(*SALT, "K1 K 0.05 0 0")
    assert len(read_cif(text, min_contact=0.01).crystal) == 3


def test_close_pairs_agree_with_brute_force():
    rng = np.random.default_rng(0)
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    for n in (5, 40, 200):
        lattice = 5 * np.eye(3) + rng.normal(0, 1, (3, 3))
        frac = rng.random((n, 3))
        delta = (frac[:, None] - frac)[..., None, :] + shifts
        near = np.triu((np.linalg.norm(delta @ lattice, axis=-1) < 0.5).any(-1), 1)
        assert {tuple(p) for p in close_pairs(frac, lattice, 0.5)[0].tolist()} == {
            tuple(p) for p in np.argwhere(near).tolist()
        }


# --- sites ---


@pytest.mark.parametrize(
    "kind",
    [
        "Nb + Zr",
        "Fe0.5Ni0.5",
        "Fe/Ni",
        "Fe,Ni",
        "NbZr",
        "Fe0.5 Ni0.5",
        "(Fe,Ni)",
        "Ca2+ Sr2+",
        "OH",
        "Fe+vacancy",
    ],
)
def test_a_type_symbol_that_names_two_elements(kind):
    rejected(cif(f"M1 '{kind}' 0 0 0"), "M1", "disordered")


@pytest.mark.parametrize("label", ["Fe1/Ni1", "Fe0.5Ni0.5", "Nb+Zr"])
def test_a_label_that_names_two_elements(label):
    rejected(cif(f"'{label}' 0 0 0", columns="label fract_x fract_y fract_z"))


@pytest.mark.parametrize(
    "kind, z",
    [
        ("Ca2+", 20),
        ("O2-", 8),
        ("Fe3+", 26),
        ("FE", 26),
        ("cl", 17),
        ("D", 1),
        ("T", 1),
        ("Fe(III)", 26),
        ("C_R", 6),
        ("2H", 1),
        ("O-2", 8),
        ("Cl-", 17),
        ("Zn4+2", 30),
        ("N_3", 7),
    ],
)
def test_one_element_in_many_spellings(kind, z):
    assert read_cif(cif(f"X1 '{kind}' 0 0 0")).crystal.elements.tolist() == [z]


@pytest.mark.parametrize(
    "label, stated, z",
    [
        ("HO1", "H Na O", 1),
        ("HO1", "Ho2 O3", 67),
        ("HO1", "", 67),
        ("CD1", "C H", 6),
        ("CD1", "Cd S", 48),
        ("OW1", "", 8),
        ("Zn1", "", 30),
        ("ZN1", "", 30),
        ("C1A", "", 6),
        ("NA", "Na Cl", 11),
    ],
)
def test_labels_without_type_symbols(label, stated, z):
    text = cif(
        f"{label} 0 0 0", columns="label fract_x fract_y fract_z", head=formula(stated) if stated else ""
    )
    elements = []
    try:
        elements = read_cif(text, framework=True).crystal.elements.tolist()
    except CrystalError as error:  # the formula names more than this one atom
        assert "contradict" in str(error) or "missing" in str(error)
        from matgen_nb.symmetry.cif_text import _element_of_label

        elements = [_element_of_label(label, stated_formula(stated))]
    assert elements == [z]


@pytest.mark.parametrize("kind", ["X", "C", "Du"])
def test_dummy_sites_are_left_out(kind):
    columns = "label type_symbol fract_x fract_y fract_z calc_flag"
    reading = read_cif(
        cif("Na1 Na 0 0 0 d", "Cl1 Cl 0.5 0.5 0.5 d", f"D1 {kind} 0.25 0.25 0.25 dum", columns=columns)
    )
    assert len(reading.crystal) == 2 and "D1" in reading.notes[0]


def test_sites_of_occupancy_zero_are_left_out():
    reading = read_cif(
        cif(
            "Na1 Na 0 0 0 1",
            "Cl1 Cl 0.5 0.5 0.5 1.0(1)",
            "K1 K 0.01 0 0 0",
            columns="label type_symbol fract_x fract_y fract_z occupancy",
        )
    )
    assert reading.crystal.formula == "NaCl" and "K1" in reading.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        cif("Na1 Na '0' \"0\" 0", "Cl1 Cl '0.5' 0.5(1) 0.5"),
        cif(*SALT, cell=("'5.64'", '"5.64(1)"', 5.64, "'90'", 90, 90)),
        cif(*SALT, head="_symmetry_Int_Tables_number '1'"),
    ],
)
def test_quoted_numbers(text):
    assert len(read_cif(text).crystal) == 2


def test_sites_without_a_loop():
    text = cif().replace("loop_\n", "")
    for tag in ("label", "type_symbol", "fract_x", "fract_y", "fract_z"):
        text = re.sub(rf"_atom_site_{tag}\n", f"_atom_site_{tag} {'Po' if 'l' in tag else 0}\n", text)
    assert read_cif(text).crystal.formula == "Po"


def test_encodings_and_compression(tmp_path):
    text = cif(*SALT, head=symbol("F m -3 m"))
    for name, raw in (
        ("bom.cif", b"\xef\xbb\xbf" + text.encode()),
        ("utf16.cif", text.encode("utf-16")),
        ("plain.cif.gz", gzip.compress(text.encode())),
        ("latin.cif", ("# r\u00e9sum\u00e9\n" + text).encode("latin-1")),
        ("dos.cif", text.replace("\n", "\r\n").encode()),
    ):
        (tmp_path / name).write_bytes(raw)
        assert len(read_cif(tmp_path / name).crystal) == len(Crystal.from_cif(tmp_path / name)) == 8
    assert len(read_cif("\ufeff" + text).crystal) == 8
    (tmp_path / "cut.cif.gz").write_bytes(gzip.compress(text.encode())[:-20])
    rejected(tmp_path / "cut.cif.gz", "cut.cif.gz")


# --- the stated formula ---


@pytest.mark.parametrize(
    "text, amounts",
    [
        ("C2 D6 O", {6: 2, 1: 6, 8: 1}),
        ("Fe0.5Ni0.5", {26: 0.5, 28: 0.5}),
        ("Na Cl", {11: 1, 17: 1}),
        ("C24 H12 O13 Zn4", {6: 24, 1: 12, 8: 13, 30: 4}),
        ("", {}),
        ("?", {}),
        ("unknown", {}),
        ("2(C3 H4)", {6: 6, 1: 8}),
        ("H1 D1", {1: 2}),
        ("(Na Cl)", {11: 1, 17: 1}),
        ("NA CL", {11: 1, 17: 1}),
        ("NA4 CL4", {11: 4, 17: 4}),
        ("Na+1 Cl-1", {11: 1, 17: 1}),
        ("2(Na Cl)", {11: 2, 17: 2}),
        ("C4 H12 N 1+", {6: 4, 1: 12, 7: 1}),
        ("Cu (N O3)2", {29: 1, 7: 2, 8: 6}),
        ("C6 H6, 2(H2 O)", {6: 6, 1: 10, 8: 2}),
        ("(Zn (C O2)2)n", {30: 1, 6: 2, 8: 4}),
        ("Fe0.5(2) Ni0.5(2)", {26: 0.5, 28: 0.5}),
        ("(Na Cl", {}),
        ("Na Cl)", {}),
        ("Na Qq", {}),
        ("Na Cl x", {}),
        ("C O2", {6: 1, 8: 2}),
    ],
)
def test_stated_formulas(text, amounts):
    assert stated_formula(text) == amounts


@pytest.mark.parametrize(
    "stated, z",
    [
        ("Na Cl", 4),
        ("Na4 Cl4", 4),
        ("Na4 Cl4", 1),
        ("Na4 Cl4", None),
        ("Na2 Cl2", 2),
        ("Cl Na", None),
        ("Na Cl", 3),
        ("NaCl", None),
    ],
)
def test_the_same_formula_in_many_forms_is_accepted(stated, z):
    assert len(read_cif(cif(*SALT, head=symbol("F m -3 m", formula(stated, z)))).crystal) == 8


@pytest.mark.parametrize("stated", ["Na2 Cl", "Na Cl O", "Na Br", "K Cl", "Na3 Cl4", "Na8 Cl8", "Na Cl2"])
def test_a_formula_that_the_sites_contradict_is_rejected(stated):
    rejected(cif(*SALT, head=symbol("F m -3 m", formula(stated))), "stated formula")


@pytest.mark.parametrize("stated", ["Na Cl x", "Na Cl)", "sodium chloride", "Na Qq"])
def test_a_formula_that_is_not_understood_is_said(stated):
    assert "was not understood" in "; ".join(read_cif(cif(*SALT, head=formula(stated))).notes)


@pytest.mark.parametrize("stated", ["(Na2 Cl)", "2(Na Cl2)", "NA CL2", "Na+1 Cl2"])
def test_a_formula_in_another_form_is_checked_too(stated):
    rejected(cif(*SALT, head=symbol("F m -3 m", formula(stated))), "stated formula")


@pytest.mark.parametrize(
    "stated, word",
    [
        ("Na0.98 Cl1", "2 %"),
        ("Na1 Cl0.98", "2 %"),
        ("Na0.995 Cl1", ""),
        ("Na0.95 Cl1", "5 %"),
        ("Na1 Cl0.9", "10 %"),
    ],
)
def test_a_formula_with_fractions_beside_full_sites(stated, word):
    text = cif(*SALT, head=symbol("F m -3 m", formula(stated)))
    if word in ("5 %", "10 %"):
        rejected(text, word, "occupied")
    else:
        notes = "; ".join(read_cif(text).notes)
        assert "missing" not in notes and (word in notes if word else not notes)


CARBON = [
    f"C{i} C {0.05 + 0.1 * i:.2f} {0.03 + 0.09 * i:.2f} {0.02 + 0.08 * (i * 3 % 9):.2f}" for i in range(9)
]


@pytest.mark.parametrize(
    "group, stated, z, full",
    [
        ("P 21/c", "C9", 4, 9),
        ("P -1", "C9", 2, 9),
        ("P 21 21 21", "C7", 4, 7),
        ("P 1", "C9", 1, 9),
        ("P 1", "C4", 2, 8),
    ],
)
def test_a_cut_list_of_one_element_is_never_read_in_silence(group, stated, z, full):
    "A ratio cannot tell a cut list of one element: a number of formula units that is not whole, or not Z, does."
    for kept in range(1, full + 1):
        text = cif(*CARBON[:kept], cell=(14, 15, 16, 90, 90, 90), head=symbol(group, formula(stated, z)))
        units = kept / full * z
        if kept == full:
            assert not read_cif(text).notes
        elif units != int(units):
            rejected(text, "missing", "C9" if stated == "C9" else stated)
        else:
            assert f"stated Z is {z}" in "; ".join(read_cif(text).notes)


@pytest.mark.parametrize(
    "stated, z, said",
    [
        ("Na Cl", 4, False),
        ("Na4 Cl4", 4, False),
        ("Na4 Cl4", 1, False),
        ("Na2 Cl2", 4, False),
        ("Na2 Cl2", 2, False),
        ("Na Cl", 1, True),
        ("Na Cl", 8, True),
        ("Na4 Cl4", 3, True),
        ("Na2 Cl2", 3, True),
    ],
)
def test_a_number_of_formula_units_that_is_not_z_is_said(stated, z, said):
    notes = "; ".join(read_cif(cif(*SALT, head=symbol("F m -3 m", formula(stated, z)))).notes)
    assert (
        f"4 formula units, but the stated Z is {z}" in notes or f"but the stated Z is {z}" in notes
    ) == said and bool(notes) == said


def test_a_primitive_cell_with_the_z_of_the_conventional_one_is_read_and_said():
    reading = read_cif(cif(*SALT, cell=(3.988,) * 3 + (60,) * 3, head=symbol("P 1", formula("Na Cl", 4))))
    assert len(reading.crystal) == 2 and "the stated Z is 4" in reading.notes[0]


@pytest.mark.parametrize(
    "sites, stated, elements",
    [
        (("T1 0 0 0", "O1 .5 .5 .5"), "", None),
        (("T2A 0 0 0",), "Si O2", None),
        (("AlSi1 0 0 0",), "", None),
        (("NaK 0 0 0",), "", None),
        (("FeNi1 0 0 0",), "Fe Ni", None),
        (("TiO1 0 0 0",), "", None),
        (("OSi1 0 0 0",), "", None),
        (("CAl1 0 0 0",), "", None),
        (("T1 0 0 0", "O1 .5 .5 .5"), "H O", [1, 8]),
        (("AlSi1 0 0 0",), "Al", [13]),
        (("NaK 0 0 0",), "Na", [11]),
        (("ZnB 0 0 0",), "", [30]),
        (("ZnC 0 0 0",), "", [30]),
        (("CuII 0 0 0",), "", [29]),
        (("Al1 0 0 0",), "", [13]),
        (("O1A 0 0 0",), "", [8]),
        (("OAc1 0 0 0",), "", [8]),
        (("HN1 0 0 0",), "", [1]),
        (("CA1 0 0 0",), "", [20]),
        (("CA1 0 0 0",), "C", [6]),
        (("OSi1 0 0 0",), "O", [8]),
    ],
)
def test_labels_that_name_two_elements_or_a_tetrahedral_site(sites, stated, elements):
    text = cif(*sites, columns="label fract_x fract_y fract_z", head=formula(stated) if stated else "")
    if elements is None:
        rejected(text, "_atom_site_type_symbol")
    else:
        assert read_cif(text).crystal.elements.tolist() == elements


@pytest.mark.parametrize(
    "kind, stated, z",
    [
        ("CO2", "", None),
        ("CO2", "C O2", None),
        ("NO3", "", None),
        ("CS2", "", None),
        ("CO2", "Co", 27),
        ("CO", "", 27),
        ("FE", "", 26),
        ("AL", "", 13),
        ("Co2+", "", 27),
        ("Co+2", "", 27),
        ("CO2+", "", 27),
        ("FE3", "", 26),
        ("Co2", "", 27),
    ],
)
def test_a_type_symbol_that_may_be_a_molecule(kind, stated, z):
    text = cif(f"X1 {kind} 0 0 0", head=formula(stated) if stated else "")
    if z is None:
        rejected(text, kind)
    else:
        assert read_cif(text).crystal.elements.tolist() == [z]


@pytest.mark.parametrize("text", ["half", "1/2", "50%", "0,5", "full", "?", ".", "1.0(2)", "'1'"])
def test_an_occupancy_that_is_no_number(text):
    file = cif(
        "Na1 Na 0 0 0 1",
        f"Cl1 Cl 0.5 0.5 0.5 {text}",
        columns="label type_symbol fract_x fract_y fract_z occupancy",
    )
    if text in ("?", ".", "1.0(2)", "'1'"):
        assert len(read_cif(file).crystal) == 2
    else:
        rejected(file, "Cl1", "occupancy", "no number")


@pytest.mark.parametrize(
    "named, triplets",
    [
        ("P 21 21 21", ("x,y,z", "-x,-y,-z")),
        ("P 1 21 1", ("x,y,z", "-x,-y,-z")),
        ("P 3", ("x,y,z", "-x,-y,z")),
        ("P -1", ("x,y,z", "-x,-y,z")),
    ],
)
@pytest.mark.parametrize("stated", ["", "Na2 Cl2", "Na4 Cl8"])
def test_operations_that_contradict_the_symbol_are_said(named, triplets, stated):
    cell = (5, 5, 7, 90, 90, 120 if named == "P 3" else 90)
    text = cif(
        "Na1 Na .1 .2 .3",
        "Cl1 Cl .4 .15 .8",
        cell=cell,
        head=symbol(named, formula(stated) if stated else "") + "\n" + operations(*triplets),
    )
    if stated == "Na4 Cl8":
        rejected(text, "contradict the symbol", named)
    else:
        assert (
            f"contradict the symbol '{named}'" in "; ".join(read_cif(text).notes)
            and len(read_cif(text).crystal) == 4
        )


@pytest.mark.parametrize("heavy", ["Al H3 O3", "Al4 H12 O12", "Al D3 O3"])
def test_missing_hydrogen_is_read_and_said(heavy):
    cell = cif("Al1 Al 0 0 0", "O1 O .4 0 0", "O2 O 0 .4 0", "O3 O 0 0 .4", head=formula(heavy))
    if "4" in heavy:
        rejected(cell)
    else:
        assert "hydrogen is missing" in "; ".join(read_cif(cell).notes)


def whole_cells():
    "Crystals of several kinds as the whole-cell CIFs that programs write: ours, pymatgen's."
    import warnings

    rutile = Crystal.from_cif(
        cif(
            "Ti Ti 0 0 0",
            "O O .305 .305 0",
            cell=(4.594, 4.594, 2.959, 90, 90, 90),
            head=symbol("P 42/m n m"),
        )
    )
    diamond = Crystal.from_cif(cif("C C 0 0 0", cell=(3.567,) * 3 + (90,) * 3, head=symbol("F d -3 m:1")))
    salt = Crystal.from_cif(cif(*SALT, head=symbol("F m -3 m")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [text for c in (rutile, diamond, salt) for text in (c.to_cif(), c.to_pymatgen().to(fmt="cif"))]


@pytest.mark.parametrize(
    "text", whole_cells(), ids=lambda text: text.split()[0] if text.startswith("data") else "pymatgen"
)
def test_a_file_that_is_cut_off_is_never_read_as_a_smaller_crystal(text):
    whole = read_cif(text).crystal
    lines = text.splitlines(keepends=True)
    for n in range(len(lines)):
        try:
            crystal = read_cif("".join(lines[:n]) + "\n").crystal
        except CrystalError:
            continue
        assert crystal.elements.tolist() == whole.elements.tolist(), n


def test_other_blocks_are_named():
    one, two = (cif(*SALT, head=symbol("F m -3 m")).replace("data_t", f"data_{n}") for n in ("one", "two"))
    reading = read_cif("data_global\n_journal_name x\n" + one + two)
    assert (
        len(reading.crystal) == 8
        and "data_two" in reading.notes[-1]
        and "data_global" not in reading.notes[-1]
    )


def test_a_volume_that_is_not_that_of_the_cell_is_said():
    assert "volume" in "; ".join(read_cif(cif(*SALT, head="_cell_volume 100")).notes)


def test_files_that_break_the_grammar_are_held_to_the_same_checks():
    "A quote that is not closed: gemmi gives up, pymatgen parses it, and the formula still counts."
    broken = lambda stated: cif(*SALT, head=symbol("F m -3 m", "_chemical_name 'rock salt", formula(stated)))
    try:
        assert len(read_cif(broken("Na Cl")).crystal) == 8
    except CrystalError as error:
        assert "cannot be read" in str(error) or "can be read" in str(error)
    rejected(broken("Na2 Cl"))


def test_a_primitive_cell_that_keeps_the_symbol_of_the_conventional_one():
    "All atoms are listed, x,y,z alone as well; the symbol cannot hold in this cell."
    head = symbol("F m -3 m") + "\n" + operations("x,y,z")
    reading = read_cif(cif(*SALT, cell=(3.988,) * 3 + (60,) * 3, head=head))
    assert len(reading.crystal) == 2 and "read as P 1" in reading.notes[0]


# --- damaged files, MOFs ---


def test_damaged_files_agree_with_their_formula_or_are_rejected():
    "A small part of tests/tools/fuzz_reading.py."
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "fuzz_reading", ROOT / "tests" / "tools" / "fuzz_reading.py"
    )
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    counts, wrong = fuzz.run(fuzz.seeds(), 120, seed=1)
    assert not wrong, wrong[0]
    assert counts["agrees"] > 15 and counts["rejected"] > 15


def mof_text(name="IRMOF-1", formula_text=None, order=None, drop=()):
    "A textbook framework as a CIF; formula_text: another stated formula; order: elements in the order of the list; drop: indices."
    from matgen_nb.mofdiff.bonds import textbook_mof

    crystal = textbook_mof(name).crystal
    order = (
        sorted(range(len(crystal)), key=lambda i: order.index(int(crystal.elements[i])))
        if order
        else range(len(crystal))
    )
    keep = [i for i in order if i not in drop]
    text = Crystal(crystal.lattice, crystal.elements[keep], crystal.frac_coords[keep]).to_cif()
    return re.sub(r"(_chemical_formula_sum) '.*'", rf"\1 '{formula_text}'", text) if formula_text else text


@pytest.mark.parametrize("stated", ["Zn8 H44 C48 O36", "Zn8 H60 C66 N6 O32", "Zn8 H24 C48 O26 Cl2"])
def test_a_framework_without_its_solvent_is_read_and_said(stated):
    text = mof_text(formula_text=stated)
    reading = read_cif(text, framework=True)
    assert len(reading.crystal) == 106 and "missing" in reading.notes[0]
    rejected(text, "missing")


@pytest.mark.parametrize(
    "order", [(30, 8, 6, 1), (6, 1, 8, 30), (1, 6, 30, 8), (30, 6, 8, 1), (30, 1, 8, 6), (1, 30, 8, 6)]
)
def test_a_framework_that_is_cut_off_is_rejected(order):
    lines = mof_text(order=order).splitlines(keepends=True)
    whole = len(lines)
    for n in range(whole - 100, whole, 9):
        try:
            reading = read_cif("".join(lines[:n]), framework=True)
        except CrystalError:
            continue
        assert "hydrogen is missing" in "; ".join(reading.notes), (order, n, reading.notes)


def test_a_framework_keeps_the_notes(tmp_path):
    import json

    from matgen_nb.mofdiff.bonds import Mof
    from matgen_nb.mofdiff.decomposition import decompose
    from matgen_nb.commands import main as entry

    path = CASES / "mofs" / "disorder_groups_no_occupancy.cif"
    with pytest.raises(CrystalError, match="--disorder first"):
        Mof.from_cif(path)
    mof = Mof.from_cif(path, disorder="first")
    assert {b.formula for b in decompose(mof).blocks} >= {"C8H4O4"} or "C8H4" in str(decompose(mof).blocks)
    assert any("group 1 of 1, 2" in note for note in mof.notes)
    (tmp_path / "in").mkdir()
    for name in ("disorder_groups_no_occupancy.cif", "atoms_listed_twice.cif"):
        (tmp_path / "in" / name).write_text((CASES / "mofs" / name).read_text())
    (tmp_path / "in" / "x.xyz").write_text("1")
    for options, kept in (([], 1), (["--disorder", "first"], 2)):
        with pytest.raises(SystemExit) as stop:
            entry.main(
                [
                    "prepare",
                    "mofs",
                    str(tmp_path / "in"),
                    "--n-jobs",
                    "1",
                    "--overwrite",
                    "--out",
                    str(tmp_path / "m.safetensors"),
                    *options,
                ]
            )
        record = json.loads((tmp_path / "m.run.json").read_text())
        assert stop.value.code == 0 and record["frameworks"] == kept and "x.xyz" in str(record["notes"])
        assert "merged" in str(record["notes"]["atoms_listed_twice"])
    assert "group 1 of 1, 2" in str(record["notes"]["disorder_groups_no_occupancy"])


@pytest.mark.parametrize("gap", [0.0, 0.02])
def test_duplicates_of_a_framework_are_dropped_and_said(gap):
    from matgen_nb.mofdiff.bonds import Mof, textbook_mof

    crystal = textbook_mof("IRMOF-1").crystal
    cart = np.concatenate([crystal.cart_coords, crystal.cart_coords[[3, 50]] + [gap, 0, 0]])
    twice = Crystal(
        crystal.lattice,
        [*crystal.elements, *crystal.elements[[3, 50]]],
        cart @ np.linalg.inv(crystal.lattice),
    )
    for mof in (Mof.from_crystal(twice), Mof.from_cif(twice.to_cif())):
        assert len(mof) == 106 and any("merged" in n or "duplicate" in n for n in mof.notes)


DISORDER = "label type_symbol fract_x fract_y fract_z occupancy disorder_assembly disorder_group"


@pytest.mark.parametrize(
    "sites, kept",
    [
        (("Zn1 Zn 0 0 0 1 . .", "O1 O 0.2 0 0 0.6 A 1", "O2 O 0.2 0.05 0 0.4 A 2"), {"O1"}),
        (("Zn1 Zn 0 0 0 1 . .", "O1 O 0.2 0 0 0.4 A 1", "O2 O 0.2 0.05 0 0.6 A 2"), {"O2"}),
        (("Zn1 Zn 0 0 0 1 . .", "O1 O 0.2 0 0 0.5 A 1", "O2 O 0.2 0.05 0 0.5 A 2"), {"O1"}),
        (("Zn1 Zn 0 0 0 1 . .", "O1 O 0.2 0 0 1 . 2", "O2 O 0.2 0.05 0 1 . 1"), {"O2"}),
        (("Zn1 Zn 0 0 0 1 . .", "O1 O 0.2 0 0 0.5 . .", "O2 O 0.2 0.05 0 0.5 . ."), {"O1"}),
        (("Zn1 Zn 0 0 0 1 . .", "O1 O 0.2 0 0 1 . .", "O2 O 0.5 0.5 0.5 0.3 . ."), {"O1"}),
        (("Zn1 Zn 0 0 0 1 . .", "O1 O 0.2 0 0 0.5 A -1", "O2 O 0.2 0.05 0 0.5 A 1"), {"O1"}),
    ],
)
def test_one_alternative_is_kept_on_request(sites, kept):
    text = cif(*sites, cell=(10,) * 3 + (90,) * 3, columns=DISORDER)
    rejected(text, "disordered", "--disorder first")
    reading = read_cif(text, framework=True, disorder="first")
    oxygen = reading.crystal.frac_coords[reading.crystal.elements == 8].round(3).tolist()
    listed = {s.split()[0]: [float(x) for x in s.split()[2:5]] for s in sites}
    assert oxygen == [listed[name] for name in sorted(kept)] and "disorder" in "; ".join(reading.notes)


def test_a_negative_group_keeps_one_of_two_overlapping_images():
    "PART -1: half of the methanol-like C-O lies on each side of an inversion centre; one orientation stays."
    sites = (
        "Zn1 Zn 0 0 0 1 . .",
        "O1 O 0.45 0.5 0.5 0.5 . -1",
        "C1 C 0.57 0.52 0.5 0.5 . -1",
        "C2 C 0.31 0.5 0.5 1 . .",
    )
    reading = read_cif(
        cif(*sites, cell=(10,) * 3 + (90,) * 3, columns=DISORDER, head=symbol("P -1")),
        framework=True,
        disorder="first",
    )
    assert sorted(reading.crystal.elements.tolist()) == [6, 6, 6, 8, 30]
