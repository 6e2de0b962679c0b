"""A setting that nothing reads is refused by every command, naming the nearest that it has."""

from pathlib import Path

import pytest
from one_case import over
from run_command import REPOSITORY, SETTINGS, error_of

from diffpolicy.commands.known import hints
from diffpolicy.training.settings import TrainConfig

CONFIGS = {path.stem for path in REPOSITORY.glob("configs/*.yaml")}
COMMANDS = sorted(
    path.stem for path in REPOSITORY.glob("scripts/*.py") if SETTINGS.get(path.stem, path.stem) in CONFIGS
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_an_unknown_setting(command: str, tmp_path: Path) -> None:
    assert "error: sead is not a setting; the nearest is " in error_of(command, tmp_path, "+sead=1")


@over(
    "command, overrides, message",
    [
        ("train_policy", ["+trainer.epochs=10"], "trainer.epochs is not a setting; the nearest is trainer.steps"),
        ("train_policy", ["+sampler.step=3"], "sampler.step is not a setting; the nearest is sampler.steps"),
        ("train_policy", ["+data.normaliser=none"], "the nearest is data.normalizer"),
        ("train_policy", ["+batch_size=8"], "batch_size is not a setting; the nearest is trainer.batch_size"),
        ("train_policy", ["+validation_fractoin=0"], "the nearest is data.validation_fraction"),
        ("train_policy", ["+sede=1"], "the nearest is seed"),
        ("evaluate_policy", ["checkpoint=x", "window={horizon: 8}"], "window: this command does not use window"),
        ("evaluate_policy", ["checkpoint=x", "task=pusht", "data.path=x"], "data.path: this command does not use data"),
        ("evaluate_policy", ["checkpoint=x", "+safety.max_sped=3"], "the nearest is safety.max_speed"),
        ("benchmark_samplers", ["checkpoint=x", "task=reach", "trainer.steps=3"], "does not use trainer"),
        ("generate_demos", ["window.n_action_steps=3", "task=reach"], "does not use window"),
    ],
)
def test_what_a_command_does_not_read_is_refused(
    command: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    assert message in error_of(command, tmp_path, *overrides)


def test_free_mappings_take_any_key(tmp_path: Path) -> None:
    """Only the data set is missing."""
    given = ["+env.kwargs.anything=1", "data.path=missing.zarr", "+data.observations.more=[state]"]
    assert "data set 'missing.zarr' not found" in error_of("train_policy", tmp_path, *given)


def test_a_misspelled_setting_gets_a_hint_besides_the_advice_of_hydra() -> None:
    arguments = ["trainer.epochs=10", "seed=1", "task=pusht", "hydra.run.dir=x", "hydra/launcher=joblib", "--cfg=job"]
    more = ["data.observations.new=[a]", "sampler=ddim", "sampler.eta=1", "-m", "windw={horizon: 3}"]
    assert hints([*arguments, *more], TrainConfig) == [
        "trainer.epochs is not a setting; the nearest is trainer.steps",
        "windw is not a setting; the nearest is window",
    ]
