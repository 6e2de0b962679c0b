"""The model card of a saved policy says what is known of it, and nothing in the metadata can break it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from one_case import over

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.policy.model_card import model_card
from diffpolicy.system.hub import is_name

RESULTS = {"n_episodes": 200, "mean_score": 0.959, "score_ci95": [0.9421, 0.973]}
RESULTS |= {"success_rate": 0.715, "success_ci95": [0.649, 0.773]}


def front_of(card: str) -> dict:
    """What the hub reads: the YAML between the first two lines of dashes."""
    found = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def seeing() -> DiffusionPolicy:
    sees = {"agent_pos": 2, "cam": ObservationSpec("image", (40, 40, 3), "first", "unit")}
    model = {"name": "unet1d", "widths": [8, 16], "time_embedding_dim": 8}
    policy = DiffusionPolicy(PolicyConfig(sees, 2, model=model, encoder="resnet18_narrow"))
    policy.fit({"agent_pos": torch.rand(9, 2)}, torch.rand(9, 2))
    return policy.eval()


def test_the_shipped_policys_card_has_task_data_command_results_and_licence(shipped_checkpoint: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(shipped_checkpoint)
    policy.metadata |= {"results": RESULTS, "license": "mit"}
    card = model_card(policy)
    assert front_of(card)["license"] == "mit"
    assert "# Diffusion policy for pusht" in card
    assert "`data/pusht_expert.zarr.zip`, SHA-256 980c4c04" in card
    assert "python scripts/train_policy.py task=pusht seed=0 trainer.steps=5000 trainer.batch_size=256" in card
    assert "200 episodes, 95 % intervals." in card
    assert "| mean score | 0.959 | 0.942 to 0.973 |" in card
    assert "| success rate | 0.715 | 0.649 to 0.773 |" in card
    assert card.endswith("## Licence\n\nmit\n")


def test_what_is_not_known_is_said_with_how_to_state_it(small_policy: DiffusionPolicy) -> None:
    card = model_card(small_policy)
    assert "license" not in front_of(card)
    assert 'not stated; name it in `policy.metadata["license"]`' in card
    assert 'Not stated; put the results.json of an evaluation in `policy.metadata["results"]`' in card
    assert "## Data" not in card
    assert "## Training" not in card


@over("policy", [seeing])
def test_the_program_that_it_shows_acts(policy: Any, tmp_path: Path, monkeypatch) -> None:
    policy().save_pretrained(tmp_path / "saved")
    (program,) = re.findall(r"```python\n(.*?)```", (tmp_path / "saved" / "README.md").read_text(), flags=re.DOTALL)
    assert 'from_pretrained("saved")' in program
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["action"].shape == (2,)
    assert np.isfinite(names["action"]).all()


HOSTILE = "x\n---\n# <script>`|` " + "y" * 5000


@over(
    "metadata",
    [
        {"task": HOSTILE, "license": HOSTILE, "env": {"id": HOSTILE, "kwargs": {HOSTILE: HOSTILE}}},
        {"training": {"data": {"path": [HOSTILE]}, "seed": HOSTILE, "trainer": HOSTILE}, "task": HOSTILE},
        {"results": {"mean_score": 0.5, "score_ci95": [HOSTILE, None], "n_episodes": HOSTILE}},
        {"results": {"mean_score": HOSTILE}, "imported": {"format": HOSTILE, "file": HOSTILE}},
        {"results": [1], "training": 3, "env": "x", "imported": [], "license": 7, "task": 4},
    ],
)
def test_metadata_of_anyones_stays_text_in_one_line(metadata: dict, small_policy: DiffusionPolicy) -> None:
    small_policy.metadata = metadata
    card = model_card(small_policy)
    assert front_of(card)["library_name"] == "diffpolicy"
    body = card.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert max(map(len, body.splitlines())) < 1000
    headings = re.findall(r"^#+ (.*)$", body, flags=re.MULTILINE)
    known = {"Use", "Task", "Data", "Training", "Origin", "Results", "Licence"}
    assert set(headings[1:]) <= known


@over("name", ["owner/name", "a/b@v1.0", "a-b/c_d.e@refs/pr/1"])
def test_names_of_the_hub_are_known(name: str) -> None:
    assert is_name(name)


@over("name", ["name", "a/b/c", "/a/b", "../b", "a/../b", "./a", "a/b@", "https://x/y", "a b/c", "~/x", "a\\b/c", ""])
def test_other_names_are_not(name: str) -> None:
    assert not is_name(name)
    assert not is_name(Path("owner/name")), "a path is a folder"
