"""Everything about the package is said once, in settings.ini; this file hands it to setuptools."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

licenses = {"apache2": "Apache-2.0"}
statuses = ["1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable", "6 - Mature", "7 - Inactive"]
minor_versions = range(int(cfg["min_python"].split(".")[1]), 14)


def absolute_links(text):
    "A page whose relative links and pictures lead to the repository: PyPI has neither notebooks nor pictures."
    pictures, files = (f"{cfg['git_url']}/{kind}/{cfg['branch']}/" for kind in ("raw", "blob"))
    relative = r"(?!https?:|#|mailto:|/)"
    text = re.sub(rf"(!\[[^]\n]*\]\(){relative}", rf"\g<1>{pictures}", text)
    text = re.sub(rf"(\]\(){relative}", rf"\g<1>{files}", text)
    return re.sub(r'(<img [^>]*src=")(?!https?:|data:)', rf"\g<1>{pictures}", text)


def long_description():
    "README.md as PyPI shows it."
    readme = here / "README.md"
    return absolute_links(readme.read_text(encoding="utf-8")) if readme.exists() else cfg["description"]


def run_setup():
    "Hand it all to setuptools."
    setup(
        name=cfg["lib_name"],
        version=cfg["version"],
        description=cfg["description"],
        long_description=long_description(),
        long_description_content_type="text/markdown",
        author=cfg["author"],
        author_email=cfg["author_email"],
        url=cfg["git_url"],
        license=licenses[cfg["license"]],
        keywords=cfg["keywords"],
        classifiers=[
            "Development Status :: " + statuses[int(cfg["status"]) - 1],
            "Intended Audience :: " + cfg["audience"],
            "Natural Language :: " + cfg["language"],
            *(f"Programming Language :: Python :: 3.{minor}" for minor in minor_versions),
        ],
        python_requires=">=" + cfg["min_python"],
        packages=find_packages(include=["matgen_nb", "matgen_nb.*"]),
        package_data={"matgen_nb": ["data/*", "data/**/*"]},
        include_package_data=False,  # package_data says it all
        install_requires=cfg["requirements"].split(),
        extras_require={
            name.removesuffix("_requirements"): value.split()
            for name, value in cfg.items()
            if name.endswith("_requirements")
        },
        project_urls={
            "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
            "Source": cfg["git_url"],
            "Issues": cfg["git_url"] + "/issues",
            "Citation": cfg["git_url"] + "#citation",
        },
        entry_points={"console_scripts": cfg["console_scripts"].split()},
        zip_safe=False,
    )


if __name__ == "__main__":
    run_setup()
