"Package metadata comes from settings.ini; this file maps it to setuptools and puts data/ and the chapters into the wheel."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

def words(key): return cfg.get(key, "").split()

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
                 "Programming Language :: Python :: 3", "Natural Language :: English"],
    python_requires=">=" + cfg["min_python"],
    packages=["latref_nb", "latref_nb.data", "latref_nb.chapters"],
    package_dir={"latref_nb.data": "data", "latref_nb.chapters": "nbs"},
    package_data={"latref_nb.data": ["**/*"], "latref_nb.chapters": ["*.ipynb"]},
    install_requires=words("requirements"),
    extras_require={"dev": words("dev_requirements"), "docs": words("docs_requirements")},
    entry_points={"console_scripts": [line.strip() for line in cfg["console_scripts"].splitlines() if line.strip()],
                  "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    include_package_data=False,
    zip_safe=False,
)
