"""Cases on command lines: overrides of the commands train and evaluate, up to the trainer or the loaded policy."""

import contextlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from judge import SilentError
from omegaconf import OmegaConf, open_dict

from diffpolicy.commands import evaluate_policy, train_policy
from diffpolicy.commands.composing import composing
from diffpolicy.system.shipped import CONFIGS
from diffpolicy.training.trainer import Trainer

Case = tuple[str, Callable[[], None]]
VALUES = [
    *("null", "true", "-1", "0", "1", "3", "100.5", "nan", "inf", "-inf", "1e9", "1e400", "1000000000000", "9" * 30),
    *("ten", "''", "[]", "[1]", "[null]", "[8,16]", "[1e9]", "{}", "{a: 1}", "[[8]]", "ddim", "???", "${seed}"),
    *("${nowhere}", "a=b", "../x"),
]
TRAIN = {  # group -> settings; a group by itself, too
    "trainer": "steps batch_size learning_rate warmup_steps weight_decay betas max_grad_norm ema_power ema_max_decay "
    "precision log_every validate_every evaluate_every checkpoint_every",
    "model": "widths time_embedding_dim kernel_size groups",
    "diffusion": "num_levels condition_dropout schedule parameterization weighting level_distribution "
    "zero_terminal_snr",
    "sampler": "steps spacing eta guidance.weight guidance.rescale guidance.threshold",
    "window": "horizon n_obs_steps n_action_steps",
    "data": "path action observations normalizer format validation_fraction stream workers",
    "evaluation": "episodes seed inference_batch",
    "logger": "name mode",
    "env": "id",
    **dict.fromkeys(("seed", "device", "resume", "policy", "task", "encoder", "codec", "+surplus", "~data"), ""),
}
EVALUATE = {
    "sampler": "steps eta spacing guidance.weight",
    "safety": "max_speed candidates margin",
    **dict.fromkeys(("checkpoint", "task", "env", "data", "trainer", "window", "episodes", "seed", "videos"), ""),
    **dict.fromkeys(("inference_batch", "device", "trust_env", "+surplus", "~checkpoint"), ""),
}
WHOLE = {"steps", "batch_size", "warmup_steps", "widths", "num_levels", "horizon", "n_obs_steps", "kernel_size", "seed"}


def override_case(base: Path, folder: Path, random_: random.Random) -> Case:
    """One or two changed settings of a command."""
    is_training = random_.random() < 0.7
    groups = TRAIN if is_training else EVALUATE
    every = [f"{group}.{name}" for group, names in groups.items() for name in names.split()] + list(groups)
    names = random_.sample(every, k=random_.choice((1, 1, 2)))
    changes = [name if name.startswith("~") else f"{name}={random_.choice(VALUES)}" for name in names]
    if is_training:
        return f"train {changes}", lambda: _train(base, folder, changes)
    saved = f"checkpoint={base / 'run' / 'checkpoints' / 'step_4'}"
    return f"evaluate {changes}", lambda: _call(evaluate_policy.main, "evaluate", folder, [saved, *changes], _stop)


def _train(base: Path, folder: Path, changes: list[str]) -> None:
    small = ["model.widths=[8,16]", "model.time_embedding_dim=8", "trainer.batch_size=8", "device=cpu"]
    own = ["task=custom", f"data.path={base / 'walk.zarr'}", "data.observations={state: [state]}"]
    _call(train_policy.main, "train", folder, [*own, *small, *changes], _checked_run)


def _stop(*arguments: Any, **options: Any) -> Any:
    raise ValueError("stop: loaded, and nothing more is looked at")


def _checked_run(trainer: Trainer) -> None:
    """In place of a run: what the settings became."""
    config = trainer.config
    for part in (config.trainer, config.window, config.model, config.diffusion):
        for name, value in vars(part).items() if hasattr(part, "__dict__") else ():
            for one in value if isinstance(value, list) else [value]:
                if name in WHOLE and (type(one) is not int or not 0 <= one < 2**40):
                    raise SilentError(f"{name} is {value!r}")
    trainer.train_step()


def _call(main: Any, name: str, folder: Path, overrides: list[str], instead: Callable[..., Any]) -> None:
    """Compose the settings as hydra does and call the command, which ends as `sys.exit(1)` with one line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            with composing(list), initialize_config_dir(str(CONFIGS), version_base="1.3"):
                settings = compose(name, overrides, return_hydra_config=True)
                OmegaConf.resolve(settings.hydra.job)
        except SystemExit:
            raise ValueError(said.getvalue().replace("\n", " ")) from None
    with open_dict(settings):
        settings.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(settings)
        del settings["hydra"]
    target = (Trainer, "run") if name == "train" else (evaluate_policy, "report")
    with mock.patch.object(*target, instead), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main(settings)
        except SystemExit as error:
            line = said.getvalue().strip().rpartition("\n")[2]  # after what is odd about the data
            if error.code != 1 or not line.startswith("error: ") or "Traceback" in said.getvalue():
                raise
            raise ValueError(line) from None
