"""The decorator that turns a function into a command: hydra settings, help text and one-line errors."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from diffpolicy.commands.composing import composing
from diffpolicy.commands.known import check_known, hints
from diffpolicy.commands.run_folders import RunFolders, begin_job, fail, open_standard_streams
from diffpolicy.system.schema import check_settings
from diffpolicy.system.shipped import CONFIGS
from diffpolicy.training.schemas import register_choices

Config = TypeVar("Config")
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, OmegaConfBaseException)

HELP = """USAGE

== Groups: choose one with group=choice ==

$APP_CONFIG_GROUPS

== Settings: change one with key=value ==

$CONFIG

== Flags ==

-m               run once for every combination of values, as in -m seed=0,1,2
--cfg job        print the settings and stop
--config-dir DIR look for groups in DIR as well: DIR/task/mine.yaml is then task=mine
--hydra-help     all other flags
"""


def command(name: str, schema: type[Config]) -> Callable[[Callable[[Config, Path], None]], Callable[[], None]]:
    """Call a function with the settings in configs/NAME.yaml, checked against `schema`, and the run folder.

    Errors that the user can fix are printed as one line. The exit status is 1 after an error and 130 after Ctrl-C. In a
    sweep, the other jobs go on after an error.
    """

    def decorate(function: Callable[[Config, Path], None]) -> Callable[[], None]:
        _register(name, schema, _help(function))

        @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)
        @functools.wraps(function)
        def main(settings: DictConfig) -> None:
            begin_job()
            try:
                check_known(settings, schema, HydraConfig.get().overrides.task)
                config: Any = OmegaConf.to_object(settings)
                check_settings(config, "")
                function(config, Path(HydraConfig.get().runtime.output_dir))
            except MissingMandatoryValue as error:
                fail(f"{error.full_key} is missing; give {error.full_key}=VALUE")
            except USER_ERRORS as error:
                fail(" ".join(str(error).split()))
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)
            except Exception as error:
                fail(f"{type(error).__name__}: {error}", is_unexpected=True)

        @functools.wraps(main)
        def begin(*settings: DictConfig) -> None:
            open_standard_streams()
            with composing(lambda: hints(sys.argv[1:], schema)):
                main(*settings)

        return begin

    return decorate


def _register(name: str, schema: type, help_text: str) -> None:
    """Register what configs/NAME.yaml builds on: the settings and the help of a command, and run folders."""
    store = ConfigStore.instance().store
    store(name=f"{name}_schema", node={"defaults": [f"{name}_settings", f"{name}_help", "run_folders"]})
    folders = {"run_folders": {"_target_": f"{RunFolders.__module__}.{RunFolders.__name__}"}}
    store(name="run_folders", node=folders, package="hydra.callbacks")
    store(name=f"{name}_settings", node=schema)
    store(name=f"{name}_help", node={"template": help_text}, package="hydra.help")
    register_choices()


def _help(function: Callable[..., None]) -> str:
    """The text of `--help`: the docstring of the command's module, then the groups and all settings."""
    usage = (sys.modules[function.__module__].__doc__ or "").strip()
    return HELP.replace("USAGE", usage.replace("$", "$$"))
