"Tags: words, labels and columns, and the one way to plain data and back."

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latref_nb.files import write_json
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet, tag_list, tag_set
from picture_case import not_regular, refused


def test_tags_there_and_back(tmp_path):
    every = torch.cartesian_prod(*[torch.arange(len(t)) for t in CELEBA_TAGS])
    for l in every:
        assert torch.equal(CELEBA_TAGS.encode(CELEBA_TAGS.decode(l)), l)
        assert torch.equal(CELEBA_TAGS.from_celeba(CELEBA_TAGS.to_celeba(l)), l)
    assert TagSet.load(CELEBA_TAGS.save(tmp_path / "tags.json")) == CELEBA_TAGS and hash(CELEBA_TAGS) == hash(
        TagSet(CELEBA_TAGS)
    )
    assert (
        CELEBA_TAGS.names == ["Smiling", "Eyeglasses", "Bangs", "HairColor", "Young", "Male"]
        and len(CELEBA_TAGS.pairs) == 13
    )
    assert CELEBA_TAGS["HairColor"] == CELEBA_TAGS[3] and "Bangs" in CELEBA_TAGS and "Beard" not in CELEBA_TAGS


def test_celeba_rows_that_do_not_decide():
    t = CELEBA_TAGS.from_celeba({"Black_Hair": "1", "Blond_Hair": "-1", "Brown_Hair": "1", "Smiling": "1"})
    assert t.tolist() == [1, -1, -1, -1, -1, -1]
    assert TagSet([Tag("Mood", ("calm", "glad", "sad"))]).from_celeba({"Mood": 1}).tolist() == [-1]


def test_names_that_do_not_exist():
    refused(lambda: CELEBA_TAGS.index("Eyeglass"), "Did you mean 'Eyeglasses'?", "Known: Smiling", exc=ValueError)
    refused(lambda: CELEBA_TAGS["eyeglasses"], "Did you mean 'Eyeglasses'?", exc=ValueError)
    refused(lambda: CELEBA_TAGS.encode({"HairColor": "blonde"}), "Did you mean 'blond'?", exc=ValueError)
    refused(lambda: CELEBA_TAGS["Smiling"].index("yes"), "Known: without, with", exc=ValueError)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[1, 2]",
        "3",
        "null",
        '{"Smiling": 1}',
        '{"Smiling": {"values": ["only"]}}',
        "{}",
        '{"a": {"values": "ab"}}',
        '{"a": {"values": [1, 2]}}',
        '{"a": {"values": [[1], [2]]}}',
        '{"a": {"values": {"x": 1}}}',
        '{"a": {"values": ["x", ""]}}',
        '{"": {"values": ["x", "y"]}}',
        '{"a": {"values": ["x", "y"], "attributes": 7}}',
        '{"a": {"values": ["x", "y"], "attributes": "xy"}}',
        '{"a": {"values": ["x", null]}}',
        '{"a": {"values": ["x", "x"]}}',
        '{"a":' * 30_000,
        '{"a": "' + "x" * 1_000_000 + '"}',
        "\udcff",
    ],
)
def test_tag_files_that_are_none(tmp_path, text):
    (tmp_path / "tags.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    refused(lambda: TagSet.load(tmp_path / "tags.json"), "tags.json", exc=ValueError)


def test_plain_data_has_one_reader():
    mood = TagSet([Tag("Young", ("no", "yes")), Tag("Mood", ("calm", "glad", "sad"))])
    for tags in (CELEBA_TAGS, mood):
        plain = json.loads(json.dumps(tag_list(tags)))
        assert tag_set(plain) == tag_set(tags.to_dict()) == tag_set(tags) == tags
        assert tag_list(plain) == plain and list(plain[0]) == ["name", "values", "attributes"]
    assert tag_set([{"name": "A", "values": ["x", "y"]}]) == tag_set({"A": {"values": ["x", "y"], "attributes": None}})
    assert tag_set({"A": {"name": "B", "values": ["x", "y"]}}).names == ["A"]


@pytest.mark.parametrize("plain", [None, 3, "tags", [3], ["tags"], [{"values": ["x", "y"]}], {"A": ["x", "y"]}, [[]]])
def test_plain_data_that_is_no_tags(plain):
    refused(lambda: tag_set(plain), "is not a set of tags. Expected {name: {'values'", exc=ValueError)


def test_a_file_of_tags_keeps_its_form(tmp_path):
    path = CELEBA_TAGS.save(tmp_path / "tags.json")
    assert json.loads(path.read_text())["Bangs"] == {"values": ["without", "with"], "attributes": ["Bangs"]}
    assert TagSet.load(write_json(tag_list(CELEBA_TAGS), tmp_path / "list.json")) == CELEBA_TAGS


def test_no_reader_of_tags_waits_for_a_pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in not_regular(Path()):
        refused(lambda: TagSet.load(path), "a tags file is needed", exc=ValueError)


@pytest.mark.parametrize("module", ["checks", "files", "tags", "metadata", "images"])
def test_names_and_files_come_without_torch(module):
    code = f"import sys, latref_nb.{module}; assert not {{'torch', 'diffusers', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
