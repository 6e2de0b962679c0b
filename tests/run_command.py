"""Runs the scripts as a user would, in child processes that have torch and hydra loaded already.

`error_of` tests what a command refuses in this process: it composes the settings as hydra does and calls the command.
"""

import contextlib
import importlib
import io
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from walk import CONTEXT, PATIENCE_S

REPOSITORY = Path(__file__).parents[1]
# Commands whose settings have another name.
SETTINGS = {
    "train_policy": "train",
    "evaluate_policy": "evaluate",
    "generate_demos": "generate",
    "convert_data": "convert",
}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python scripts/SCRIPT ARGUMENTS` in the folder of the repository."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = CONTEXT.Process(target=_main, args=(script, arguments, out, err))
        process.start()
        process.join(PATIENCE_S)
        process.kill()
        process.join()
        return subprocess.CompletedProcess([script, *arguments], process.exitcode, out.read_text(), err.read_text())


def error_of(command: str, folder: Path, *overrides: str) -> str:
    """The error message of diffpolicy.commands.COMMAND for settings that it must refuse, with run folder `folder`."""
    main = importlib.import_module(f"diffpolicy.commands.{command}").main  # stores its schema
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        try:
            settings = compose(SETTINGS.get(command, command), list(overrides), return_hydra_config=True)
            OmegaConf.resolve(settings.hydra.job)
        except (HydraException, OmegaConfBaseException) as error:
            return f"{error} {error.__cause__}"  # hydra prints both and exits
    with open_dict(settings):
        settings.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(settings)
        del settings["hydra"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit, match=r"^1$"):
        main(settings)
    assert said.getvalue().startswith("error: ")
    return said.getvalue()


def _main(script: str, arguments: tuple[str, ...], out: Path, err: Path) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    os.chdir(REPOSITORY)
    path = str(REPOSITORY / "scripts" / script)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
