"""Record demonstrations of a scripted expert."""

from diffpolicy.commands.generate_demos import main

if __name__ == "__main__":
    main()
