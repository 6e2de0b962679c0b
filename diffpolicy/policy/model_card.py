"""The model card of a saved policy: a README.md that says what it is, how it was made, how good it is, how to load it.

Metadata may come from a checkpoint of anyone's, so whatever it holds is shown as a short text in one line.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from diffpolicy._version import __version__
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.policy.protocol import Policy
from diffpolicy.system.plain import shown_text

CARD = "README.md"
TRAINED_BY = (("seed",), ("trainer", "steps"), ("trainer", "batch_size"), ("trainer", "learning_rate"))
ALL_SETTINGS = (
    "All settings are in config.json, under `training`; those of the networks and of diffusion are not repeated here."
)


def model_card(policy: Policy, source: str = "FOLDER") -> str:
    """The text of README.md.

    Args:
        source: what `from_pretrained` is to be called with: a folder, or owner/name on the hub.
    """
    parts = [_front(policy), _title(policy), _seen(policy), _use(policy, source), *_sections(policy)]
    return "\n\n".join(parts) + "\n"


def _front(policy: Policy) -> str:
    lines = ["library_name: diffpolicy", "pipeline_tag: robotics", "tags: [robotics, diffusion-policy]"]
    if isinstance(found := policy.metadata.get("license"), str):
        lines.insert(0, f"license: {json.dumps(found)}")
    return "\n".join(["---", *lines, "---"])


def _title(policy: Policy) -> str:
    config, count = policy.config, sum(one.numel() for one in policy.acting_state().values())
    task = policy.metadata.get("task")
    name = f"Diffusion policy for {_text(task)}" if isinstance(task, str) else "Diffusion policy"
    window = config.window
    return "\n".join(
        [
            f"# {name}\n",
            f"A policy of diffpolicy {__version__}, after [Diffusion Policy](https://arxiv.org/abs/2303.04137): "
            f"{_name(config.model)} with {count:,} numbers, encoder {_name(config.encoder)}, objective "
            f"{_name(config.diffusion)}.",
            f"It sees {window.n_obs_steps} time steps, plans {window.horizon} actions of {config.action_dim} features "
            f"and executes {window.n_action_steps} of them.",
        ]
    )


def _seen(policy: Policy) -> str:
    rows = [
        f"| {_text(key)} | {spec.kind} | {list(spec.shape)} | {_delivered(spec)} |"
        for key, spec in sorted(policy.config.observations.items())
    ]
    return "\n".join(["| observation | kind | shape | values |", "|---|---|---|---|", *rows])


def _delivered(spec: ObservationSpec) -> str:
    if spec.kind == "vector":
        return "physical units"
    return f"channels {spec.channels}, {spec.values}"


def _use(policy: Policy, source: str) -> str:
    given = {key: _example(spec) for key, spec in sorted(policy.config.observations.items())}
    lines = [f"    {json.dumps(key)}: {value}," for key, value in given.items()]
    return "\n".join(
        [
            "## Use\n",
            "```python",
            "import numpy as np\n",
            "from diffpolicy import DiffusionPolicy, PolicyController\n",
            f"controller = PolicyController(DiffusionPolicy.from_pretrained({json.dumps(source)}))",
            "controller.reset(seeds=[0])",
            "observation = {  # of one robot",
            *lines,
            "}",
            "action = controller.select_action(observation)[0]  # in physical units",
            "```",
        ]
    )


def _example(spec: ObservationSpec) -> str:
    shape = (1, *spec.shape)
    if spec.kind == "vector":
        return f"np.zeros({shape})"
    return f"np.zeros({shape}, dtype=np.uint8)"


def _sections(policy: Policy) -> Iterator[str]:
    training, imported, env = (_mapping(policy.metadata.get(key)) for key in ("training", "imported", "env"))
    if env:
        yield f"## Task\n\nTrained for the env `{_text(env.get('id'))}`, with `{_text(json.dumps(env.get('kwargs')))}`."
    if training:
        data = _mapping(training.get("data"))
        yield f"## Data\n\n`{_text(data.get('path'))}`, SHA-256 {_text(training.get('data_sha256', 'not known'))}."
        yield f"## Training\n\n```\n{_command(policy)}\n```\n\n{ALL_SETTINGS}"
    if imported:
        yield f"## Origin\n\nImported from {_text(imported.get('format'))}, file `{_text(imported.get('file'))}`."
    yield f"## Results\n\n{_results(_mapping(policy.metadata.get('results')))}"
    found = policy.metadata.get("license")
    stated = _text(found) if isinstance(found, str) else 'not stated; name it in `policy.metadata["license"]`'
    yield f"## Licence\n\n{stated}"


def _command(policy: Policy) -> str:
    words = ["python scripts/train_policy.py"]
    if isinstance(task := policy.metadata.get("task"), str):
        words.append(f"task={_text(task)}")
    for path in TRAINED_BY:
        value: Any = policy.metadata["training"]
        for key in path:
            value = _mapping(value).get(key)
        if isinstance(value, int | float):
            words.append(f"{'.'.join(path)}={value}")
    return " ".join(words)


def _results(found: Mapping[str, Any]) -> str:
    rows = []
    for name, value, interval in (
        ("mean score", "mean_score", "score_ci95"),
        ("success rate", "success_rate", "success_ci95"),
    ):
        low_high = found.get(interval)
        if isinstance(found.get(value), float) and isinstance(low_high, list | tuple) and len(low_high) == 2:
            rows.append(f"| {name} | {_text(found[value])} | {_text(low_high[0])} to {_text(low_high[1])} |")
    if not rows:
        return 'Not stated; put the results.json of an evaluation in `policy.metadata["results"]` before you save it.'
    head = [
        f"{_text(found.get('n_episodes'))} episodes, 95 % intervals.\n",
        "| what | value | interval |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _name(choice: Any) -> str:
    return _text(getattr(choice, "name", choice))


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _text(found: Any) -> str:
    """One line without what markdown would read as more than text."""
    told = f"{found:.3f}" if isinstance(found, float) else " ".join(str(found).split())
    return shown_text(told).replace("`", "'").replace("|", "/").replace("<", "(")
