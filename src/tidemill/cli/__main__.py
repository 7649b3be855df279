"""``python -m tidemill.cli``."""

from tidemill.cli.entry import main

main()
