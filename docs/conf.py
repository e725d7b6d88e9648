"""The site: `sphinx-build -W docs site` (extra `[docs]`)."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "must"
author = "The authors of must"
release = re.search(r'__version__ = "(.+)"', (ROOT / "must" / "__init__.py").read_text(encoding="utf-8"))[1]
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["README.md"]
html_theme = "furo"
html_title = f"must {release}"
html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
nitpicky = True
