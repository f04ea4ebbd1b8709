"""``python -m drvm``."""

import sys

from drvm.cli.main import main

sys.exit(main())
