"""python -m gimkit"""

import sys

from gimkit.cli import main

sys.exit(main())
