"""The glossary defines the words of the field that the lessons use, in order, each with a lesson that exists and uses the word."""

import json
import re

import pytest
from conftest import ROOT

NBS = ROOT / "nbs"
PAGE = NBS / "glossary.ipynb"
WANTED = """
    unit cell; primitive cell; conventional cell; lattice; motif; orbit; general position; special position;
    asymmetric unit; site-symmetry group; conjugate stabilisers; equivariance; latent variable;
    variational autoencoder; evidence lower bound; reparameterisation; score; denoiser; metal node; linker;
    secondary building unit; carboxylate; net; pore-limiting diameter; working capacity; energy above hull;
    space group; wyckoff position; wyckoff template; fractional coordinates; diffusion model; message passing;
    self-consistency; score scale; guidance; minimum contact distance; charge neutrality; connection point;
    coarse graining; relaxation; validity; novelty; uniqueness; match rate; symprec; projection; bravais lattice;
    invariance; topology; bond order; minimum image
"""
INSIDE = {
    "equivariance": ("invariant", "E(3)", "SE(3)"),
    "net": ("topology", "RCSR"),
    "asymmetric unit": ("region",),
}
"Words that the vocabulary wants and that are explained within another entry."


def cells(path):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found]


def entries():
    "{word: text} in the order of the page."
    text = "\n\n".join(cells(PAGE))
    parts = re.split(r"^#{2,3} (.+)$", text.split("## Words")[1].split("## Notation")[0], flags=re.M)
    return dict(zip(parts[1::2], map(str.strip, parts[2::2])))


def lesson_links(text):
    return re.findall(r"\[([\d.]+)\]\(([\w/]+\.ipynb)\)", text)


ENTRIES = entries()


def test_every_wanted_word_is_defined():
    wanted = [word.strip() for word in " ".join(WANTED.split()).split(";")]
    missing = [word for word in wanted if word not in ENTRIES]
    assert not missing, f"no entry for {missing}"
    for word, others in INSIDE.items():
        assert all(other in ENTRIES[word] for other in others), f"'{word}' must explain {others}"


def test_words_are_in_alphabetical_order_and_lower_case():
    words = list(ENTRIES)
    assert words == sorted(words), next(a for a, b in zip(words, sorted(words)) if a != b)
    assert words == [word.lower() for word in words], "headings are link targets: lower case"


@pytest.mark.parametrize("word", ENTRIES)
def test_an_entry_is_one_or_two_sentences_and_names_its_lesson(word):
    text = ENTRIES[word]
    definition, _, rest = text.partition(" *Lesson ")
    sentences = [s for s in re.split(r"(?<=[.?!])\s+(?=[A-Z])", definition) if s]
    assert 1 <= len(sentences) <= 3 and definition.endswith("."), sentences
    assert 30 < len(definition) < 360, f"{len(definition)} characters"
    links = lesson_links(rest)
    assert len(links) == 1, f"'{word}' names no single lesson: {rest}"
    check_link(*links[0])


def check_link(number, target):
    path = NBS / target
    assert path.exists(), f"{target} does not exist"
    title = cells(path)[0].split("\n")[0]
    assert title.startswith(f"# {number} "), f"{target} is '{title}', not lesson {number}"


def test_every_symbol_of_the_notation_names_its_lesson():
    table = next(text for text in cells(PAGE) if text.startswith("## Notation"))
    rows = [line for line in table.split("\n") if line.startswith("| $")]
    assert len(rows) >= 20
    for row in rows:
        (link,) = lesson_links(row)
        check_link(*link)


def test_links_into_the_glossary_lead_to_an_entry():
    found = 0
    for path in sorted(NBS.rglob("*.ipynb")):
        for target in re.findall(r"glossary\.ipynb#([\w-]+)", "\n".join(cells(path))):
            found += 1
            word = {re.sub(r"\W+", "-", w): w for w in ENTRIES}.get(target)
            assert word or target in ("words", "notation"), f"{path.name} links to #{target}: no such entry"
    assert "glossary.ipynb" in "\n".join(cells(NBS / "index.ipynb")), "the first page must link the glossary"
    assert found >= 20, "first uses in lessons link to the entry"


def test_lessons_use_the_words_that_they_introduce():
    plain = lambda text: text.lower().replace("-", " ")
    texts = {}
    missing = []
    for word, entry in ENTRIES.items():
        ((_, target),) = lesson_links(entry)
        texts[target] = texts.get(target) or plain("\n".join(cells(NBS / target)))
        if plain(word) not in texts[target]:
            missing.append(word)
    assert len(missing) <= 0.2 * len(ENTRIES), f"not used in the lesson that is named: {missing}"
