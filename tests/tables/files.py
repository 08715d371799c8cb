"""Print a table of public dialects of data files: what is read of each, and whether that is what its owner means.

    python tests/tables/files.py

Every file is made here, see ``support/public_files.py``. The exit status is 1 if one is read otherwise.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.public_files import PUBLIC_FILES, rows_read
from tailsweep.trainables.errors import DataError


def main() -> int:
    """Print the table."""
    wrong = 0
    print(f"{'file':<58} {'records':>7} {'read':>5}  equal  form")
    for file in PUBLIC_FILES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows, notes = rows_read(file, Path(folder))
            except DataError as error:
                rows, notes = [], [str(error)]
        is_equal = rows == list(file.rows)
        wrong += not is_equal
        forms = [note.partition("was read as: ")[2].removesuffix(" (data.format sets it)") for note in notes]
        print(
            f"{file.kind:<58} {len(file.rows):>7} {len(rows):>5}  {'yes' if is_equal else 'NO':<5}  {'; '.join(forms)}"
        )
    print(f"{len(PUBLIC_FILES) - wrong} of {len(PUBLIC_FILES)} files are read as their owners mean them")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
