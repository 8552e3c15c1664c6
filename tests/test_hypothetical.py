"""Lessons 4.8 to 4.13: nets, nodes, linkers, the solver, and the frameworks that come out. What is built is taken apart again by the decomposition of lesson 4.1."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from matgen_nb.mofdiff import block_library, builder, hypothetical, metal_nodes, net_catalogue, net_placement
from matgen_nb.mofdiff.bonds import Mof, textbook_mofs
from matgen_nb.mofdiff.decomposition import decompose, recompose
from matgen_nb.mofdiff.building_blocks import BuildingBlock
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.preparing import MofPrepareOptions, prepare_mofs
from matgen_nb.symmetry.crystal import element_table
from matgen_nb.utils import MatgenError

seeds = st.integers(0, 2**31)


def random_rotation(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q) if np.linalg.det(q) < 0 else q


def plan_of(net, nodes, linker=None):
    block = lambda name: block_library.load_library()[name][0]
    return net_placement.Plan(
        net,
        [block(nodes[d]) for d in net.degrees.tolist()],
        [block(linker) if linker else None] * len(net.edges),
        np.full(len(net.edges), -1),
    )


def neighbours(net, steps):
    "How many vertices are 1, 2, ... steps from each vertex."
    step = [[] for _ in range(len(net))]
    for (i, j), s in zip(net.edges.tolist(), net.shifts.tolist()):
        step[i].append((j, s)), step[j].append((i, [-x for x in s]))
    out = []
    for v in range(len(net)):
        front = seen = {(v, 0, 0, 0)}
        for _ in range(steps):
            front = {(j, x + s[0], y + s[1], z + s[2]) for i, x, y, z in front for j, s in step[i]} - seen
            seen = seen | front
            out.append(len(front))
    return np.array(out).reshape(len(net), steps)


@pytest.mark.parametrize("name", sorted(net_catalogue.net_facts()))
def test_every_net_of_the_table_is_sound(name):
    net, facts = net_catalogue.load_net(name), net_catalogue.net_facts()[name]
    assert (
        sorted(set(net.degrees.tolist())) == sorted(set(facts["degrees"])) and np.linalg.det(net.lattice) > 0
    )
    rows = {(*e, *s) for e, s in zip(net.edges.tolist(), net.shifts.tolist())}
    assert len(rows) == len(net.edges) and not any((i, i, 0, 0, 0) in rows for i in range(len(net)))
    assert np.linalg.matrix_rank(net.vectors) == 3 and np.linalg.norm(net.vectors, axis=1).min() > 0.2


@pytest.mark.parametrize("name, known", [("pcu", [6, 18, 38]), ("dia", [4, 12, 24]), ("fcu", [12, 42, 92])])
def test_coordination_sequences_survive_doubling(name, known):
    net = net_catalogue.load_net(name)
    assert (neighbours(net, 3) == known).all()
    for parity in net_catalogue.PARITIES:
        assert (neighbours(net_catalogue.doubled(net, parity), 3) == known).all()


def test_nets_that_contradict_themselves_are_rejected():
    text = "CRYSTAL\nNAME x\nGROUP Pm-3m\nCELL 1 1 1 90 90 90\nNODE 1 {} 0 0 0\nEDGE 0 0 0 0 0 {}\nEND"
    assert net_catalogue.net_from_facts(net_catalogue.read_cgd(text.format(6, 1))).degrees.tolist() == [6]
    for bad, word in [
        (text.format(4, 1), "degrees"),
        (text.format(6, 0.5), "no vertex"),
        (text.format(6, 1).replace("Pm-3m", "Pqrs"), "Pqrs"),
        ("NAME x", "GROUP"),
    ]:
        with pytest.raises(MatgenError, match=word):
            net_catalogue.net_from_facts(net_catalogue.read_cgd(bad))
    with pytest.raises(MatgenError, match="nosuch"):
        net_catalogue.load_net("nosuch")


@pytest.mark.parametrize("name", sorted(metal_nodes.metal_nodes()))
def test_metal_nodes_have_sensible_bonds(name):
    block = metal_nodes.metal_nodes()[name]
    length = 2 * np.linalg.norm(block.connection_points - block.cart_coords[block.connection_atoms], axis=1)
    assert ((1.5 < length) & (length < 2.5)).all() and np.allclose(
        block.connection_points.mean(0), 0, atol=1e-9
    )
    outer = 2 * block.connection_points - block.cart_coords[block.connection_atoms]
    separation = np.linalg.norm(outer[:, None] - outer, axis=-1)[np.triu_indices(len(outer), 1)]
    assert separation.min() > 1.3, "atoms of the linkers would overlap"
    assert len(net_placement.ends_of(block)) in (4, 6, 8, 12)
    stored = block_library.load_library()[name][0]
    assert (
        stored.identity == block.identity
        and np.abs(stored.connection_points - block.connection_points).max() < 1e-5
    )


@pytest.mark.parametrize("name", ["IRMOF-1", "HKUST-1", "UiO-66", "ZIF-8"])
def test_nodes_and_linkers_are_those_of_the_published_crystals(name):
    blocks = {b.identity: b for b in decompose(textbook_mofs()[name]).blocks}
    ours = {b.identity: b for group in block_library.load_library().values() for b in group}
    assert set(blocks) <= set(ours)
    for identity, true in blocks.items():
        same = [b for group in block_library.load_library().values() for b in group if b.identity == identity]
        radii = lambda b: np.sort(np.linalg.norm(b.connection_points, axis=1))
        assert min(np.abs(radii(b) - radii(true)).max() for b in same) < 0.15


def test_library_is_complete_and_well_formed():
    library = block_library.load_library()
    assert set(library) == set(metal_nodes.metal_nodes()) | set(block_library.linker_names())
    for name, group in library.items():
        for block in group:
            site = net_placement.ends_of(block)
            assert sum(map(len, site.ends)) == block.num_connections and np.allclose(
                block.connection_points.mean(0), 0, atol=1e-6
            )
            if not block.is_metal:
                assert np.allclose(
                    np.linalg.norm(
                        block.connection_points - block.cart_coords[block.connection_atoms], axis=1
                    ),
                    1,
                    atol=1e-4,
                ), name
            n = len(block)
            seen = {0}
            for _ in range(n):
                seen |= {b for a, c in block.bonds.tolist() for b in (a, c) if a in seen or c in seen}
            assert block.is_metal or len(seen) == n, f"{name} is in pieces"


def test_linkers_are_reproducible_and_bad_ones_rejected():
    smiles = block_library.fill_scaffold(block_library.SCAFFOLDS["fum"])
    a, b = block_library.make_linker(smiles), block_library.make_linker(smiles)
    assert all(np.array_equal(x.cart_coords, y.cart_coords) for x, y in zip(a, b))
    for bad in ("c1ccccc1", "C(", ""):
        with pytest.raises(MatgenError):
            block_library.make_linker(bad)


@pytest.mark.parametrize("name", sorted(block_library.linker_names()))
def test_no_double_bond_of_the_library_is_left_open_or_on_the_wrong_side(name):
    "By rdkit's own list of what could be cis or trans, and by the isomer that it finds in the coordinates."
    from rdkit import Chem
    from rdkit.Geometry import Point3D

    text = block_library.linker_names()[name]
    mol, _ = block_library.read_linker(text)
    double = [s for s in Chem.FindPotentialStereo(mol) if s.type == Chem.StereoType.Bond_Double]
    assert all(s.specified == Chem.StereoSpecified.Specified for s in double)
    assert len(double) == text.count("=C/") + text.count("=N/"), "each is written with its geometry"
    for block in block_library.load_library()[name] if double else ():
        shape = Chem.Conformer(mol.GetNumAtoms())
        for k, x in enumerate(block.cart_coords.tolist()):
            shape.SetAtomPosition(k, Point3D(*x))
        seen = Chem.Mol(mol)
        seen.RemoveAllConformers()
        seen.AddConformer(shape)
        Chem.DetectBondStereochemistry(seen, 0)
        Chem.AssignStereochemistryFrom3D(seen)
        found = [seen.GetBondWithIdx(s.centeredOn).GetStereo() for s in double]
        assert found == [Chem.BondStereo.STEREOE] * len(double), f"{name} is named after the trans isomer"
        assert block_library.keeps_double_bonds(mol, block.cart_coords)


@pytest.mark.parametrize(
    "text", ["XC=CX", "XC=Cc1ccc(C=CX)cc1", "Xc1ccc(cc1)N=Nc1ccc(X)cc1", "X/C=C/C=CX", "XC(C)=CX"]
)
def test_a_linker_without_the_geometry_of_its_double_bonds_is_rejected(text):
    with pytest.raises(MatgenError, match=r"on which side of \d double bond.*write / or .* \(cis\)"):
        block_library.make_linker(block_library.fill_scaffold(text))


@pytest.mark.parametrize("text, stated", [("X/C=C/X", 180), ("X/C=C\\X", 0), ("XC=C(C)C", None)])
def test_conformers_have_the_isomer_of_their_text(text, stated):
    "Also where nothing is to be stated: a carbon with two equal neighbours."
    smiles = block_library.fill_scaffold(text)
    mol, _ = block_library.read_linker(smiles)
    for block in block_library.make_linker(smiles):
        twists = block_library.double_bond_twists(mol, block.cart_coords)
        assert len(twists) == (stated is not None)
        assert all(goal == stated and abs(found - stated) < 5 for found, goal in twists.values())
        mirrored = block.cart_coords * [1, 1, -1]
        assert block_library.keeps_double_bonds(mol, mirrored), "a mirror image is the same isomer"


def test_embedded_frameworks_do_not_contain_the_linkers_that_were_wrong():
    "Muconate and three others held cis bonds until they were made anew; none of them is in what ships."
    library = block_library.load_library()
    changed = {block.identity for name in ("muc", "pda", "bta", "fum-tz") for block in library[name]}
    data = hypothetical.embedded_mofs()
    assert not changed & {block.identity for block in data.library} and len(changed) == 4


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_fits_do_not_depend_on_orientation(seed):
    net = net_catalogue.load_net("tbo")
    v = int(net.degrees.argmax())
    directions = net_placement.half_edges(net, v)[1]
    block = block_library.load_library()["Cu2"][0]
    first = net_placement.fit_directions(net_placement.ends_of(block), directions)
    other = net_placement.fit_directions(
        net_placement.ends_of(block.rotated(random_rotation(seed))), directions @ random_rotation(seed + 1).T
    )
    assert len(first) == len(other) and np.allclose([f[0] for f in first], [f[0] for f in other], atol=1e-9)
    for rms, R, order in other:
        assert np.allclose(R @ R.T, np.eye(3)) and sorted(order) == list(range(4))


def test_the_kind_of_end_is_respected():
    site, directions = (
        net_placement.ends_of(block_library.load_library()["Zn2(ax)"][0]),
        net_placement.half_edges(net_catalogue.load_net("pcu"), 0)[1],
    )
    along = np.abs(directions @ directions[0]) > 0.9
    for rms, R, order in net_placement.fit_directions(site, directions, np.where(along, 0, 2)):
        assert (site.kinds[order] == np.where(along, 0, 2)).all()
    assert net_placement.fit_directions(
        site, directions, np.where(along, 0, 2)
    ) and not net_placement.fit_directions(site, directions, np.full(6, 2))


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_solver_finds_the_framework_again_from_a_disturbed_pose(seed):
    plan = plan_of(net_catalogue.doubled(net_catalogue.load_net("pcu"), (1, 1, 1)), {6: "Zn4O"}, "bdc")
    pose = net_placement.solve_pose(net_placement.place_blocks(plan, np.random.default_rng(0))[0])
    rng = np.random.default_rng(seed)
    step = np.concatenate([rng.normal(size=6 * len(pose.t)) * 0.1, rng.normal(size=9) * 0.3])
    found = net_placement.solve_pose(net_placement._moved(pose, step))
    assert net_placement.pose_gaps(found).max() < net_placement.pose_gaps(pose).max() + 1e-3
    assert abs(np.linalg.det(found.lattice) / np.linalg.det(pose.lattice) - 1) < 1e-3


@pytest.mark.parametrize(
    "net, nodes, linker, parity, name, tolerance",
    [
        ("pcu", {6: "Zn4O"}, "bdc", (1, 1, 1), "IRMOF-1", 0.03),
        ("tbo", {4: "Cu2", 3: "btc"}, None, None, "HKUST-1", 0.03),
        ("fcu", {12: "Zr6"}, "bdc", None, "UiO-66", 0.03),
    ],
)
def test_cells_of_textbook_frameworks(net, nodes, linker, parity, name, tolerance):
    net = net_catalogue.load_net(net)
    d = builder.build(
        plan_of(net_catalogue.doubled(net, parity) if parity else net, nodes, linker),
        np.random.default_rng(0),
    )
    true = textbook_mofs()[name].crystal
    assert abs((np.linalg.det(d.lattice) / true.volume) ** (1 / 3) - 1) < tolerance
    assert len(d) == len(decompose(textbook_mofs()[name])) and recompose(d).formula == true.formula


def test_what_is_built_comes_apart_the_same_way():
    d = builder.build(plan_of(net_catalogue.load_net("tbo"), {4: "Cu2", 3: "btc"}), np.random.default_rng(0))
    again = decompose(Mof.from_crystal(recompose(d)))
    assert Counter(b.identity for b in again.blocks) == Counter(b.identity for b in d.blocks) and len(
        again.connections
    ) == len(d.connections)
    pairs, cells = builder.bonds_of(d)
    cart = np.concatenate([x @ d.lattice + b.cart_coords for x, b in zip(d.frac_coords, d.blocks)])
    assert np.linalg.norm(cart[pairs[:, 1]] + cells @ d.lattice - cart[pairs[:, 0]], axis=1).max() < 2.7


def test_plans_that_cannot_be_are_rejected_with_the_stage():
    stage = lambda plan, **limits: (
        pytest.raises(
            builder.Rejected, builder.build, plan, np.random.default_rng(0), replace(builder.LIMITS, **limits)
        ).value.stage
    )
    pcu = net_catalogue.load_net("pcu")
    assert stage(plan_of(pcu, {6: "Zn4O"}, "bdc")) == "twist"
    assert stage(plan_of(net_catalogue.load_net("dia"), {4: "Cu2"}, "bdc")) == "fit"
    good = plan_of(net_catalogue.doubled(pcu, (1, 1, 1)), {6: "Zn4O"}, "bdc")
    assert (
        stage(good, blocks=5) == "size"
        and stage(good, density=(2, 3)) == "density"
        and stage(good, contact=9) == "contact"
        and stage(good, gap=1e-6) == "gap"
    )


def test_trials_depend_on_their_seed_alone(tmp_path):
    first = hypothetical.make_hypothetical(
        3, seed=5, nets=["pcu", "fcu", "dia"], n_jobs=1, out=tmp_path / "a.safetensors", progress=None
    )
    second = hypothetical.make_hypothetical(
        3, seed=5, nets=["pcu", "fcu", "dia"], n_jobs=1, out=tmp_path / "b.safetensors", progress=None
    )
    assert (
        first.names == second.names
        and torch.equal(first.frac_coords, second.frac_coords)
        and torch.equal(first.lattice, second.lattice)
    )
    before = (tmp_path / "a.safetensors").stat().st_mtime_ns
    assert (
        hypothetical.make_hypothetical(
            3, seed=5, nets=["pcu", "fcu", "dia"], n_jobs=1, out=tmp_path / "a.safetensors"
        ).names
        == first.names
    )
    assert (tmp_path / "a.safetensors").stat().st_mtime_ns == before, "read, not made again"
    with pytest.raises(MatgenError, match="trials"):
        hypothetical.make_hypothetical(
            50,
            seed=5,
            nets=["pcu"],
            n_jobs=1,
            out=tmp_path / "c.safetensors",
            progress=None,
            options=hypothetical.HypotheticalOptions(max_trials=3),
        )
    assert not (tmp_path / "c.safetensors").exists()


def test_embedded_set():
    data = hypothetical.embedded_mofs()
    assert isinstance(data, MofData) and len(data) >= 1000 and len(set(data.names)) == len(data)
    assert (
        (data.num_blocks <= 20).all()
        and not data.properties.isnan().any()
        and set(data.property_names) == {"density", "void_fraction", "lcd"}
    )
    metal = torch.tensor([b.num_connections if b.is_metal else -b.num_connections for b in data.library])
    owner = torch.repeat_interleave(torch.arange(len(data)), data.num_blocks)
    assert (torch.zeros(len(data), dtype=torch.long).index_add(0, owner, metal[data.block]) == 0).all(), (
        "as many metal as organic connection points"
    )
    assert (torch.linalg.det(data.lattice) > 100).all()


def test_more_than_ship_are_built_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(
        hypothetical,
        "cache_path",
        lambda stem, recipe: tmp_path / f"{stem}-{hypothetical.short_hash(recipe)}.safetensors",
    )
    monkeypatch.setattr(hypothetical, "PORTION", 2)
    shipped, how = hypothetical.embedded_mofs(), dict(nets=["pcu", "fcu", "acs"], n_jobs=1, progress=None)
    assert (
        hypothetical.many_mofs().names == shipped.names
        and hypothetical.many_mofs(7).names == shipped.names[:7]
        and not list(tmp_path.iterdir())
    ), "what ships needs no building"
    made, build, requested = (
        hypothetical.many_mofs(len(shipped) + 3, **how),
        hypothetical.make_hypothetical,
        [],
    )
    assert (
        len(made) == len(set(made.names)) == len(shipped) + 3
        and made.names[: len(shipped)] == shipped.names
        and len(list(tmp_path.iterdir())) == 2
    )
    k = len(shipped) // 2
    assert torch.equal(made.lattice[: len(shipped)], shipped.lattice) and [
        b.identity for b in made[k].blocks
    ] == [b.identity for b in shipped[k].blocks]
    assert (
        set(made.property_names) == set(shipped.property_names)
        and not made.properties.isnan().any()
        and made.info["built"] == 3
    )
    (tmp_path / sorted(p.name for p in tmp_path.iterdir())[-1]).unlink()  # as if it had been stopped there
    monkeypatch.setattr(
        hypothetical, "make_hypothetical", lambda *a, **k: requested.append(a) or build(*a, **k)
    )
    again = hypothetical.many_mofs(len(shipped) + 3, **how)
    assert (
        again.names == made.names and torch.equal(again.frac_coords, made.frac_coords) and len(requested) == 2
    )
    assert hypothetical.many_mofs(len(shipped) + 1, seed=1, **how).names[-1] != made.names[len(shipped)], (
        "another seed, other frameworks"
    )


@pytest.mark.parametrize("i", [0, 100, 500, 900])
def test_labels_of_the_embedded_set_are_those_of_its_frameworks(i):
    data = hypothetical.embedded_mofs()
    mof = data[i % len(data)]
    mass = sum(element_table().mass[b.elements].sum() for b in mof.blocks)
    assert abs(1.66053906660 * mass / np.linalg.det(mof.lattice) / mof.properties["density"] - 1) < 1e-3
    beads = mof.frac_coords[:, None] - mof.frac_coords
    assert (
        0 <= mof.properties["void_fraction"] <= 1 and mof.properties["lcd"] >= 0 and np.isfinite(beads).all()
    )


def test_some_of_the_embedded_set_is_assembled_again_from_its_beads():
    from matgen_nb.mofdiff.assembly import assemble

    data = hypothetical.embedded_mofs()
    small = [i for i in range(60) if data.num_blocks[i] <= 8][:4]
    built = assemble([data[i] for i in small], seed=0)
    assert sum(b.row["bond_success"] == 1 for b in built) >= 3


@pytest.mark.parametrize(
    "names, charge",
    [
        (["Zn4O", *3 * ["bdc-NO2"]], 0),
        (["Zr6", *6 * ["fum"]], 0),
        (["Zr6(8)", *2 * ["tbapy"]], 0),  # NU-1000
        (["Zr6(6)", *2 * ["btc"]], 0),  # MOF-808, its six other ligands on the node
        ([*3 * ["Cu2"], *4 * ["btc"]], 0),
        (["Zn", *2 * ["mim"]], 0),
        (["Zn2(ax)", *2 * ["bdc"], "dabco"], 0),
        (["Fe3O", *2 * ["btc"]], 1),  # MIL-100 carries one F- or OH-
        ([*3 * ["Mn4Cl"], *8 * ["btc-tz"]], -3),
        (["Ni8", *6 * ["bdc-pz"]], -2),
    ],
)
def test_formal_charges_of_known_frameworks(names, charge):
    library = block_library.load_library()
    assert block_library.formal_charge([library[name][0] for name in names]) == charge


def test_charges_are_told_where_frameworks_are_built():
    "A note for each charged framework of the embedded set; blocks from elsewhere have no known charge."
    data, report = prepare_mofs("embedded", options=MofPrepareOptions(limit=300))
    charges = {name: block_library.formal_charge(data[i].blocks) for i, name in enumerate(data.names)}
    assert set(report.notes) == {name for name, charge in charges.items() if charge}
    families = ("3O", "4Cl", "Ni8", "Co8")
    assert any("Ni8" in name for name in report.notes) and "counter-ions" in str(report)
    assert all(any(f in name for f in families) for name in report.notes)
    foreign = decompose(textbook_mofs()["ZIF-8"]).blocks[0]
    strange = BuildingBlock(
        foreign.elements,
        foreign.cart_coords,
        foreign.bonds,
        foreign.connection_points,
        foreign.connection_atoms,
        foreign.is_metal,
        "of another library",
    )
    assert block_library.formal_charge([strange]) is None
    with pytest.raises(MatgenError, match="no oxidation state is known for U"):
        metal_nodes.node_charge(replace(foreign, elements=np.full(len(foreign.elements), 92)))


@pytest.mark.parametrize(
    "smiles, charge",
    [("C([O-])(=O)C([O-])=O", -2), ("[N+](=O)[O-]", 0), ("c1c[n-:1][n:1]c1", -1), ("C1CC-C1", 0)],
)
def test_charge_of_a_smiles(smiles, charge):
    assert block_library.smiles_charge(smiles) == charge


def test_stored_frameworks_do_not_depend_on_the_order_of_the_library():
    "Blocks are named, not counted: another block before them changes nothing."
    library = block_library.load_library()
    turned = dict(reversed(library.items()))
    shipped = hypothetical.embedded_mofs()
    packed = hypothetical.pack_mofs([shipped[i] for i in range(20)])
    for order in (library, turned):
        data = hypothetical.unpack_mofs(packed, order, {})
        for i in range(20):
            assert [b.identity for b in data[i].blocks] == [b.identity for b in shipped[i].blocks]
            assert all(
                np.array_equal(a.cart_coords, b.cart_coords)
                for a, b in zip(data[i].blocks, shipped[i].blocks)
            )
