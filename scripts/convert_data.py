"""Convert a data set: python scripts/convert_data.py source=FOLDER output=FILE.zarr"""

from diffpolicy.commands.convert_data import main

if __name__ == "__main__":
    main()
