"""Checkpoints: the same policy comes back, and nothing damaged or foreign gets in."""

import functools
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from one_case import over

from diffpolicy import DiffusionPolicy
from diffpolicy.system import checkpoint

MISSING = object()


@pytest.fixture
def folder(small_policy: DiffusionPolicy, tmp_path: Path) -> Path:
    small_policy.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder: Path, change) -> None:
    """Write the checkpoint anew with other tensors, hashes valid."""
    config = checkpoint.read_config(folder)
    tensors = change(checkpoint.read_tensors(folder, "model"))
    shutil.rmtree(folder)
    checkpoint.write(folder, {k: v for k, v in config.items() if k != "sha256"}, {"model": tensors})


def test_a_loaded_policy_plans_as_the_saved_one(small_policy: DiffusionPolicy, folder: Path) -> None:
    observation = {"position": torch.rand(2, 2, 3), "goal": torch.rand(2, 2, 2)}
    loaded = DiffusionPolicy.from_pretrained(folder)
    plans = [
        policy.predict_action_chunk(observation, [torch.Generator().manual_seed(i) for i in range(2)]).plan
        for policy in (small_policy, loaded)
    ]
    torch.testing.assert_close(*plans, rtol=0, atol=0)
    assert loaded.config == small_policy.config


def test_the_folder_holds_json_safetensors_and_the_model_card_alone(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_the_model_card_may_be_changed_or_removed(folder: Path) -> None:
    (folder / "README.md").write_text("# Mine")
    DiffusionPolicy.from_pretrained(folder)
    (folder / "README.md").unlink()
    DiffusionPolicy.from_pretrained(folder)


@pytest.mark.parametrize("position", [0.1, 0.5, 0.99])
def test_a_flipped_bit_in_the_weights_is_refused(folder: Path, position: float) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: SHA-256"):
        DiffusionPolicy.from_pretrained(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        DiffusionPolicy.from_pretrained(folder)


def test_a_changed_setting_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["policy"]["window"]["n_action_steps"] = 4
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not match its own SHA-256"):
        DiffusionPolicy.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "\x00", '{"format_version": 1}'])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|has format_version None|does not match)"):
        DiffusionPolicy.from_pretrained(folder)


def test_another_format_version_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 6}))
    with pytest.raises(ValueError, match="format_version 6, this version reads 1 or 2 or 3 or 4 or 5"):
        DiffusionPolicy.from_pretrained(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: {k: v for k, v in tensors.items() if k != "network.head.1.bias"})
    with pytest.raises(ValueError, match=r"missing tensors \['network\.head\.1\.bias'\], unknown tensors \[\]"):
        DiffusionPolicy.from_pretrained(folder)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: {**tensors, "surplus": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"missing tensors \[\], unknown tensors \['surplus'\]"):
        DiffusionPolicy.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: {**tensors, "network.head.1.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"network\.head\.1\.bias has shape \[3\], expected \[2\]"):
        DiffusionPolicy.from_pretrained(folder)


def test_a_tensor_of_another_dtype_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: {**tensors, "network.head.1.bias": torch.zeros(2, dtype=torch.float16)})
    with pytest.raises(ValueError, match=r"network\.head\.1\.bias is torch\.float16, expected torch\.float32"):
        DiffusionPolicy.from_pretrained(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_in_place_of_the_folder_is_refused(folder: Path, file: str) -> None:
    with pytest.raises(ValueError, match=r"is a file, expected a folder such as RUN/checkpoints/last"):
        DiffusionPolicy.from_pretrained(folder / file)


def test_missing_statistics_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: {**tensors, "codec.scale": torch.full((2,), torch.nan)})
    with pytest.raises(ValueError, match="no normalisation statistics for action"):
        DiffusionPolicy.from_pretrained(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing.replace(".", r"\.")):
        DiffusionPolicy.from_pretrained(folder)


def test_an_existing_folder_is_never_overwritten(small_policy: DiffusionPolicy, folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        small_policy.save_pretrained(folder)
    assert (folder / "config.json").read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.write(tmp_path / "new", {"policy": object()}, {"model": {"weight": torch.zeros(2)}})
    assert list(tmp_path.iterdir()) == []


def test_last_is_a_relative_link_that_is_swapped(folder: Path, small_policy: DiffusionPolicy) -> None:
    small_policy.save_pretrained(folder.parent / "newer")
    link = folder.parent / "last"
    for target in (folder, folder.parent / "newer"):
        checkpoint.point(link, target)
        assert link.readlink() == Path(target.name)
    assert DiffusionPolicy.from_pretrained(link).config == small_policy.config


def test_last_as_a_text_file_is_followed(folder: Path, small_policy: DiffusionPolicy, monkeypatch) -> None:
    def refuse(*arguments, **options) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    link = folder.parent / "last"
    checkpoint.point(link, folder)
    assert link.is_file()
    assert DiffusionPolicy.from_pretrained(link).config == small_policy.config


def test_weights_are_what_safetensors_reads(folder: Path, small_policy: DiffusionPolicy) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    assert set(tensors) == set(small_policy.state_dict())


@over(
    "path, value, message",
    [
        ("policy", None, "policy is None, expected a mapping"),
        ("policy.model.groups", -8, "groups -8 must be between 1 and 65536"),
        ("policy.model.groups", 0, "groups 0 must be between 1 and 65536"),
        ("policy.model.kernel_size", 10**8 + 1, "must be between 1 and 255"),
        ("policy.model.widths", [16, 20_000], "has 14010597058 parameters, expected at most"),
        ("policy.diffusion.num_levels", 10**9, "must be between 1 and 10000"),
        ("policy.diffusion.num_levels", 100.5, "num_levels is 100.5, expected int"),
        ("policy.normalizer", "x", "normalizer"),
        ("policy.window.horizon", None, "horizon is None, expected int"),
        ("policy.observations.goal.shape", [True], r"shape\[0\] is True, expected int"),
        ("policy.diffusion", MISSING, "policy: diffusion is missing"),
        ("policy.model.kernel_size", MISSING, "policy: model.kernel_size is missing"),
        ("policy.model.depth", 3, "has no setting depth"),
        ("step", -1, "step -1 must be at least 0"),
    ],
)
def test_settings_are_checked_although_the_hashes_are_right(folder: Path, path: str, value, message: str) -> None:
    file = folder / "config.json"
    before = file.read_text()
    content = json.loads(before)
    *parents, name = path.split(".")
    inner = functools.reduce(lambda tree, key: tree[key], parents, content)
    inner.pop(name) if value is MISSING else inner.update({name: value})
    content["sha256"]["config.json"] = checkpoint._config_hash(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        DiffusionPolicy.from_pretrained(folder)
    file.write_text(before)
    assert str(error.value).startswith(f"checkpoint: {folder}")


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: {**tensors, "network.head.1.bias": torch.tensor([0.0, torch.inf])})
    with pytest.raises(ValueError, match=r"network\.head\.1\.bias holds NaN or infinity"):
        DiffusionPolicy.from_pretrained(folder)


@over(
    "header, message",
    [
        (b"[]", "the header is"),
        (b"{}" * 10, "not valid JSON"),
        (b'{"a": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}', "of 4000000000 bytes in"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "expected dtype, shape"),
        (b'{"a": {"dtype": "X", "shape": [], "data_offsets": [0, 4]}}', "expected dtype, shape"),
    ],
)
def test_a_header_is_checked_before_the_tensors_are_read(folder: Path, header: bytes, message: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=message):
        DiffusionPolicy.from_pretrained(folder)


def test_what_safetensors_says_of_a_header_with_line_breaks_is_told_in_one_line(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "a\nb", "shape": [], "data_offsets": [0, 4]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (folder / "model.safetensors").write_bytes(data)
    content = json.loads((folder / "config.json").read_text())
    content["sha256"]["model.safetensors"] = hashlib.sha256(data).hexdigest()
    content["sha256"]["config.json"] = checkpoint._config_hash(content)
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="holds no tensors that safetensors can read") as error:
        checkpoint.read_tensors(folder, "model")
    assert "\n" not in str(error.value)


def test_a_header_longer_than_the_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="a header of 9223372036854775808 bytes in a file of 10"):
        DiffusionPolicy.from_pretrained(folder)
