"""`python -m querykey.cli`."""

import sys

from querykey.cli import main

sys.exit(main())
