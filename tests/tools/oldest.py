"""Prints the oldest versions that settings.ini allows, as pins for pip: `python tests/tools/oldest.py > oldest.txt`."""

import configparser
from pathlib import Path


def pins(*extras):
    "Lines 'name==version' of the lower bounds of the requirements, and of extras by name."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(Path(__file__).resolve().parents[2] / "settings.ini", encoding="utf-8")
    words = parser["DEFAULT"]["requirements"].split()
    for extra in extras:
        words += parser["DEFAULT"][f"{extra}_requirements"].split()
    return [word.split(",")[0].replace(">=", "==") for word in words]


if __name__ == "__main__":
    print("\n".join(pins("ase", "hub", "fast")))
