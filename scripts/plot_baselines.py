"""Draw the paths of several policies around one obstacle: python scripts/plot_baselines.py 'checkpoints={ddpm: RUN}'"""

from diffpolicy.commands.plot_baselines import main

if __name__ == "__main__":
    main()
