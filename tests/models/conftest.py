import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.6")

# pytest imports each file on its own: what they share is found here.
sys.path.insert(0, str(Path(__file__).parent))
