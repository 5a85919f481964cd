"""What every test may use: the helpers under `tests/support`, and where the reference outputs lie."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `import support.…` under --import-mode=importlib
