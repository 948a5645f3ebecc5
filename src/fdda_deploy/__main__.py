"""``python -m fdda_deploy``: the command line without its entry point."""

import sys

from fdda_deploy.cli import main

sys.exit(main())
