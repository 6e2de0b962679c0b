"""Train a policy: python scripts/train_policy.py task=pusht

    python scripts/train_policy.py task=reach model=unet trainer.steps=20000 hydra.run.dir=RUN
    python scripts/train_policy.py task=custom data.path=FILE.zarr 'data.observations={state: [state]}'
    python scripts/train_policy.py resume=true hydra.run.dir=RUN
    python scripts/train_policy.py resume=true hydra.run.dir=RUN trainer.steps=10000
    python scripts/train_policy.py task=pusht init_from=data/checkpoints/pusht_small data.path=FILE.zarr
    python scripts/train_policy.py task=pusht 'data.path=[A.zarr,B.zarr]' 'data.weights=[3,1]'
    torchrun --nproc-per-node 2 scripts/train_policy.py task=pusht hydra.run.dir=RUN

The installed command is `diffpolicy-train`. For your own task, write DIR/task/NAME.yaml like configs/task/pusht.yaml
and pass `--config-dir DIR task=NAME`. Writes config.yaml, metrics.jsonl, figures/ and checkpoints/ into the run folder
RUN, by default outputs/TASK/TIME. SIGTERM and Ctrl-C save a checkpoint and end the run with exit status 128 + the
signal's number.
"""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from diffpolicy.commands.command import command
from diffpolicy.system.advice import override
from diffpolicy.system.distributed import joined
from diffpolicy.system.files import write_text
from diffpolicy.training.settings import TrainConfig
from diffpolicy.training.trainer import Trainer


@command("train", TrainConfig)
def main(config: TrainConfig, folder: Path) -> None:
    with joined(config.limits.ranks_s) as ranks:
        trainer = Trainer(config, folder, ranks)
        trainer.claim()
        if ranks.is_first:
            write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
        stopped = trainer.run()
    if not ranks.is_first:
        return
    if stopped is not None:
        print(
            f"{stopped.name}: step {trainer.step} of {config.trainer.steps} is saved; to resume, run the same command "
            f"with resume=true {override('hydra.run.dir', folder)}",
            file=sys.stderr,
        )
        sys.exit(128 + stopped)
    print(f"checkpoint: {folder / 'checkpoints' / 'last'}")
