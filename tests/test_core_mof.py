"""CoRE MOF as a source: a package of the same layout in small, with textbook frameworks under other names."""

import csv
import io
import json
import tarfile

import pytest
from matgen_nb.commands.main import main
from matgen_nb.mofdiff import core_mof
from matgen_nb.mofdiff.bonds import textbook_crystal
from matgen_nb.mofdiff.coarse_graining import Limits
from matgen_nb.mofdiff.core_mof import (
    CITATION,
    LEFT_OUT,
    beads_identity,
    data_folder,
    read_core_mof,
    read_core_mof_table,
    reference_code,
)
from matgen_nb.mofdiff.data import MofData
from matgen_nb.mofdiff.decomposition import decompose
from matgen_nb.mofdiff.bonds import textbook_mof
from matgen_nb.mofdiff.coarse_graining import CoarseMof
from matgen_nb.mofdiff.evaluation import framework_identity
from matgen_nb.mofdiff.hypothetical import pore_labels
from matgen_nb.mofdiff.preparing import MofPrepareOptions, prepare_mofs
from matgen_nb.utils import MatgenError

ASR = {  # file: (framework, LCD, entry that the table found)
    "SAHYIK_clean": ("IRMOF-1", "15.0", ""),
    "SAHYIK02_clean": ("IRMOF-1", "15.1", ""),  # a redetermination
    "am301365h_si_002_clean": ("UiO-66", "8.4", "RUBTAK01"),  # named after the paper
    "ABAVIJ_clean": ("HKUST-1", "13.2", ""),  # kept for evaluation
    "FIQCEN_clean": ("HKUST-1", "13.2", ""),  # and the same framework under another code
    "ERIRIG_clean": ("MOF-177", "", ""),  # 24 blocks
    "EDUSIF_clean": ("IRMOF-1", "15.2", ""),  # the first one's blocks and net
}
FSR = {"RUBTAK_freeONLY": ("UiO-66", "8.3", ""), "SABVUN_freeONLY": ("MIL-53", "8.5", "")}


def write_subset(folder, name, entries, header):
    "The archive and the table of a subset as `core-mof` has them."
    with tarfile.open(folder / f"{name}.tar.xz", "w:xz") as archive:
        for stem, (framework, *_) in entries.items():
            text = textbook_crystal(framework).to_cif().encode()
            member = tarfile.TarInfo(f"{stem}.cif")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    with open(folder / f"{name}.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        for stem, (_, lcd, matched) in entries.items():
            row = dict(filename=stem, LCD=lcd, AV_VF="0.5", All_Metals="Zn", Matched_CSD_of_CoRE=matched)
            table.writerow([row.get(column, "") for column in header])


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    "A folder that holds a package CoRE_MOF."
    root = tmp_path_factory.mktemp("site")
    data = root / "CoRE_MOF" / "data"
    data.mkdir(parents=True)
    (root / "CoRE_MOF" / "__init__.py").write_text(
        "raise ImportError('its data are read, it is not imported')\n"
    )
    full = ["filename", "LCD", "AV_VF", "All_Metals", "Matched_CSD_of_CoRE", "", ""]
    write_subset(data, "2019-ASR", ASR, full)
    write_subset(data, "2019-FSR", FSR, full)
    write_subset(
        data, "2014", {"SAHYIK_clean": ("IRMOF-1", "", ""), "SABVUN_clean": ("MIL-53", "", "")}, full[:1]
    )
    return root


@pytest.fixture
def installed(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    return package / "CoRE_MOF" / "data"


def prepared(subset="2019-ASR", blocks=40, **options):
    options = MofPrepareOptions(subset=subset, limits=Limits(max_blocks=blocks), **options)
    return prepare_mofs("core-mof", n_jobs=1, progress=None, options=options)


@pytest.fixture(scope="module")
def asr(package):
    "The subset 2019-ASR of the small package, prepared."
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package))
        return prepared()


@pytest.mark.parametrize(
    "name, matched, code",
    [
        ("SAHYIK_clean", "", "SAHYIK"),
        ("SAHYIK02_clean_h", "", "SAHYIK"),
        ("SAHYIK", "", "SAHYIK"),
        ("am301365h_si_002_clean", "RUBTAK01", "RUBTAK"),
        ("am301365h_si_002_clean", " ", "am301365h_si_002_clean"),
        ("am301365h_si_002_clean", None, "am301365h_si_002_clean"),
        ("acs.cgd.5b01554_VAGNUP1452791_clean", "no entry", "acs.cgd.5b01554_VAGNUP1452791_clean"),
        ("SAHYIKX_clean", "", "SAHYIKX_clean"),
    ],
)
def test_reference_codes(name, matched, code):
    assert reference_code(name, matched) == code


def test_the_table_gives_codes_and_properties(installed):
    codes, values = read_core_mof_table(installed / "2019-ASR.csv")
    assert codes["SAHYIK02_clean"] == "SAHYIK" and codes["am301365h_si_002_clean"] == "RUBTAK"
    assert values["SAHYIK_clean"] == dict(lcd=15.0, point_void_fraction=0.5)
    assert values["ERIRIG_clean"] == dict(point_void_fraction=0.5), "an empty cell is no number"


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(core_mof, "find_spec", lambda name: None)
    with pytest.raises(MatgenError, match=r"not installed: pip install 'matgen_nb\[core-mof\]'"):
        data_folder()


def test_repeats_go_and_each_says_why(asr):
    data, report = asr
    reasons = {f.name: f.reason for f in report.failures}
    assert sorted(data.names) == ["ERIRIG_clean", "SAHYIK_clean", "am301365h_si_002_clean"]
    assert report.total == len(ASR) and report.kept == 3
    assert reasons["SAHYIK02_clean"] == "the same reference code as another (SAHYIK_clean)"
    assert reasons["EDUSIF_clean"] == "the same blocks and net as another (SAHYIK_clean)"
    assert reasons["ABAVIJ_clean"] == "kept for evaluation"
    assert "kept for evaluation (ABAVIJ_clean)" in reasons["FIQCEN_clean"], (
        "its copy must not be learned either"
    )


def test_no_reference_code_can_be_on_both_sides_of_a_split(package, asr):
    codes = read_core_mof("2019-ASR", package / "CoRE_MOF" / "data").codes
    mine = [codes[name] for name in asr[0].names]
    assert len(set(mine)) == len(mine) and not set(mine) & set(LEFT_OUT)


def test_labels_and_citation_go_with_the_data(asr, tmp_path):
    data, _ = asr
    data.save(tmp_path / "real.safetensors")
    again = MofData.load(tmp_path / "real.safetensors")
    assert again[again.names.index("SAHYIK_clean")].properties["lcd"] == pytest.approx(15.0)
    assert again.info["citation"] == CITATION and again.info["licence"] == "CC BY 4.0"
    assert CITATION in again.info["source"], "which training writes into the weights"


def test_the_limit_of_blocks_counts(installed):
    _, report = prepared(blocks=20)
    assert "24 blocks" in {f.name: f.reason for f in report.failures}["ERIRIG_clean"]


def test_all_subsets_together_keep_one_structure_of_a_code(installed):
    data, report = prepared("all")
    assert sorted(data.names) == ["ERIRIG_clean", "SABVUN_freeONLY", "SAHYIK_clean", "am301365h_si_002_clean"]
    gone = {f.name for f in report.failures}
    assert {"RUBTAK_freeONLY", "SAHYIK_clean (2014)", "SABVUN_clean"} <= gone
    assert report.total == len(ASR) + len(FSR) + 2


def test_measured_labels_are_those_of_the_hypothetical_frameworks(installed):
    data, _ = prepared(measure=True, limit=1, labels=("density", "void_fraction", "lcd"))
    wanted = pore_labels(textbook_crystal("IRMOF-1"))
    assert data.property_names == list(wanted)
    assert data[0].properties == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("name", ["IRMOF-1", "HKUST-1", "UiO-66", "MIL-53"])
def test_beads_have_the_identity_of_the_framework(name):
    d = decompose(textbook_mof(name))
    assert beads_identity(CoarseMof.from_decomposition(d)) == framework_identity(d)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(subset="2020"), "--subset '2020' is unknown; core-mof has 2019-ASR, 2019-FSR, 2014, or all"),
        (
            dict(subset="2014", labels=("lcd",)),
            "core-mof has no property lcd; it has none. --measure computes",
        ),
        (dict(labels=("density", "lcd")), "no property density; it has lcd, point_void_fraction"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_computed(installed, options, message):
    with pytest.raises(MatgenError, match=message.replace("(", r"\(")):
        prepared(**options)


def test_damaged_packages_are_named(installed, tmp_path):
    with pytest.raises(MatgenError, match="2019-ASR.tar.xz: install core-mof again"):
        read_core_mof(folder=tmp_path)
    (tmp_path / "t.csv").write_text("name,LCD\na,1\n")
    with pytest.raises(MatgenError, match="no column 'filename'"):
        read_core_mof_table(tmp_path / "t.csv")


def test_command(installed, tmp_path, capsys):
    def prepare(*words):
        with pytest.raises(SystemExit) as stop:
            main(["prepare", "mofs", *map(str, words), "--n-jobs", "1"])
        return stop.value.code

    out = tmp_path / "real.safetensors"
    assert prepare("core-mof", "--out", out, "--label", "lcd") == 0
    data = MofData.load(out)
    assert "ERIRIG_clean" in data.names, "40 blocks are the limit of core-mof"
    assert data.property_names == ["lcd"] and data.info["limits"]["max_blocks"] == 40
    record = json.loads((tmp_path / "real.run.json").read_text())
    assert any("same reference code" in line for line in record["failures"])
    other = tmp_path / "x.safetensors"
    assert prepare("embedded", "--subset", "2014", "--out", other) == 2
    assert "core-mof, which is not among the sources" in capsys.readouterr().err
    assert prepare(out, "--label", "pld", "--out", other) == 2
    assert "has the property pld; there are: lcd" in capsys.readouterr().err
