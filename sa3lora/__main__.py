"""Run the command line as `python -m sa3lora`."""

from __future__ import annotations

import sys

from sa3lora.cli.main import main

if __name__ == "__main__":  # data loader workers that are spawned import this file again
    sys.exit(main())
