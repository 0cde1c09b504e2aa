"""Makes the installed wheel runnable: `longlook ...` and `python -m longlook ...`.

The wheel carries the whole application under the one name `longlook`; inside, modules import each
other as in the checkout (`from memory.chunk import KVChunk`). Knows nothing of what the command
line offers: `app.py` does.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run the command line of `app.py`, found beside this file."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from app import main as run

    run()


if __name__ == "__main__":
    main()
