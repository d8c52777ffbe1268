"""The documentation site: ``sphinx-build -W docs docs/_build``, without a network."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]
# Notebooks run in processes of their own, by this Python and on this checkout; one thread each keeps their times and
# figures alike everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
os.environ["PYTHONPATH"] = os.pathsep.join((str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])))

import dtp  # noqa: E402

project = "dtp"
author = copyright = "the dtp developers"
version = release = dtp.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "included_links",
    "mathml",
    "plain_docstrings",
    "rule_pages",
    "small_screens",
]
exclude_patterns = ["_build", "**/_*.md", "_ext", "**/.ipynb_checkpoints", "jupyter_execute"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
# Two hyphens begin an option; they are no dash.
smartquotes_action = "qe"
# Markdown of the results, by the page that includes it.
included_pages = {
    "../benchmarks/results/README.md": "results.md",
    "../benchmarks/results/board.md": "board.md",
    "../benchmarks/results/comparison.md": "comparison.md",
    **{
        f"../benchmarks/results/{name}.md": f"results-{name}.md"
        for name in ("accuracy", "published", "theory", "speed", "parallel", "robustness")
    },
}
nb_execution_mode = "cache"
# What notebooks write is not a part of the sources.
nb_execution_in_temp = True
# Of a cell, on a busy machine.
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Their docstrings are their own libraries', with references into documentation that is not here.
autodoc_inherit_docstrings = False
# Sources of names where they are defined; pages of sources link back by one name of a module alone.
viewcode_follow_imported_members = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"dtp {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"source_directory": "docs/"}
html_copy_source = False
html_show_sphinx = False
