"Package metadata comes from settings.ini; this file maps it to setuptools and puts data/ and the chapters into the wheel."
import sys
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

def words(key): return cfg.get(key, "").split()

# The Pythons that are promised: min_python to max_python, both named in settings.ini and nowhere else.
major, first = map(int, cfg["min_python"].split("."))
last = int(cfg["max_python"].split(".")[1])
if not (major, first) <= sys.version_info[:2] <= (major, last):  # said here, before pip looks for libraries in vain
    sys.exit(f"{cfg['lib_name']} needs Python {cfg['min_python']} to {cfg['max_python']}, for which every library has a release; "
             f"this is {sys.version.split()[0]}. Make the environment with one of these, e.g. python{cfg['max_python']} -m venv .venv")

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Intended Audience :: Education",
                 "Natural Language :: English", f"Programming Language :: Python :: {major}",
                 *(f"Programming Language :: Python :: {major}.{minor}" for minor in range(first, last + 1))],
    python_requires=f">={major}.{first},<{major}.{last + 1}",
    packages=["latref_nb", "latref_nb.data", "latref_nb.chapters"],
    package_dir={"latref_nb.data": "data", "latref_nb.chapters": "nbs"},
    package_data={"latref_nb": ["static/*"], "latref_nb.data": ["**/*"], "latref_nb.chapters": ["*.ipynb"]},
    install_requires=words("requirements"),
    extras_require={k: words(f"{k}_requirements") for k in ("dev", "docs", "measure", "photos")},
    entry_points={"console_scripts": [line.strip() for line in cfg["console_scripts"].splitlines() if line.strip()],
                  "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    include_package_data=False,
    zip_safe=False,
)
