"""The notebook as a page of the site: `notebook.ipynb` becomes `notebook.md` while the site is built.

The notebook is kept without outputs. A hook of mkdocs (`hooks: [docs/tools/notebook_page.py]`).
"""

import json
from pathlib import Path
from typing import Any

NAME = "notebook"


def page(notebook: dict[str, Any]) -> str:
    """Markdown of a notebook: its text as it is, its code in fences."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + f"\n\n[Download the notebook]({NAME}.ipynb)\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds the page; called by mkdocs."""
    from mkdocs.structure.files import File

    source = Path(config.docs_dir) / f"{NAME}.ipynb"
    text = page(json.loads(source.read_text(encoding="utf-8")))
    files.append(File.generated(config, f"{NAME}.md", content=text))
    return files
