"""docs/images.md: its encoder trains and acts, and its settings, defaults and sizes are right."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.policy import build
from diffpolicy.policy.build import ENCODERS
from diffpolicy.system.tables import Entry, NameOnly, made

PAGE = (Path(__file__).parents[1] / "docs" / "images.md").read_text(encoding="utf-8")


def shown(folder: Path) -> Any:
    """The class that the page shows."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    path = folder / "mean_colour.py"
    path.write_text(program, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MeanColour


def test_the_encoder_that_it_shows_trains_and_acts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = shown(tmp_path)
    entry = Entry(NameOnly, lambda own_settings, observations, steps: own(observations, steps))
    monkeypatch.setattr(build, "ENCODERS", MappingProxyType({**ENCODERS, "mean_colour": entry}))
    sees = {"camera": ObservationSpec("image", (8, 8, 3)), "state": vector(2)}
    model = UNet1dConfig(widths=[8, 16], time_embedding_dim=8)
    policy = DiffusionPolicy(PolicyConfig(sees, 2, model=model, encoder="mean_colour"))
    share = torch.linspace(0.0, 1.0, 20)[:, None].expand(-1, 2)
    policy.fit({"state": share}, share)
    seen = {"camera": torch.randint(256, (3, 2, 8, 8, 3), dtype=torch.uint8), "state": torch.rand(3, 2, 2)}
    policy.loss(seen, torch.rand(3, 16, 2), torch.Generator().manual_seed(0)).backward()
    assert policy.predict_action_chunk(seen, [torch.Generator() for _ in range(3)]).plan.isfinite().all()


def test_its_encoders_are_those_of_the_table_and_have_the_parameters_that_it_says() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([\d.]+) ?(?:million)? \|", PAGE, flags=re.MULTILINE))
    assert set(rows) == set(ENCODERS)
    for name, millions in rows.items():
        sees = {"state": vector(2)} if name == "low_dim" else {"camera": ObservationSpec("image", (96, 96, 3))}
        encoder = made(ENCODERS, "encoder", name, sees, 2)
        assert round(sum(one.numel() for one in encoder.parameters()) / 1e6, 1) == float(millions)


def test_its_settings_exist_with_the_defaults_that_it_names() -> None:
    rows = re.findall(r"^\| `encoder\.(\w+)`(?:, `(\w+)`, `(\w+)`)? \| `?([\w.]+)`?", PAGE, flags=re.MULTILINE)
    named = {name: default for *names, default in rows for name in names if name}
    own = {one.name: str(one.default) for one in fields(ENCODERS["resnet18"].settings)}
    assert set(named) == set(own) - {"name", "keypoints"}, "the number of keypoints is told beside the pooling"
    spelled = {"False": "false", "None": "null"}
    for name, default in named.items():
        value = spelled.get(own[name], own[name])
        assert value == default or float(value) == float(default), name
    assert f"`keypoints` ({own['keypoints']})" in PAGE
