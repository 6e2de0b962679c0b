"""Draw the figures of docs/safety.md: python scripts/plot_safety.py checkpoint=RUN/checkpoints/last"""

from diffpolicy.commands.plot_safety import main

if __name__ == "__main__":
    main()
