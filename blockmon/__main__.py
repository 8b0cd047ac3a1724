"""`python -m blockmon`."""

from blockmon.cli import main

raise SystemExit(main())
