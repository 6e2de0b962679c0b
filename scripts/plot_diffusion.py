"""Draw the figures of docs/diffusion.md: python scripts/plot_diffusion.py"""

from diffpolicy.commands.plot_diffusion import main

if __name__ == "__main__":
    main()
