"""Settings of the site: `make docs` builds it into site/."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for generated.py

project = "densefeat"
author = "the densefeat developers"
version = release = installed_version("densefeat")
copyright = author  # says whose the pages are; years go stale

extensions = [
    "myst_parser",  # pages are Markdown
    "sphinx.ext.autodoc",  # the API from docstrings
    "sphinx.ext.napoleon",  # their Args, Returns and Raises
    "sphinx_click",  # the command line from its own commands
    "generated",  # tables from the package itself
]
root_doc = "index"
exclude_patterns = ["**/__pycache__"]
default_role = "code"  # `one backtick` in a docstring or a help text
smartquotes = False  # they make one dash of the hyphens of --option

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
maximum_signature_line_length = 100
python_display_short_literal_types = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes without a line on their type

html_theme = "furo"  # system fonts, nothing from other servers
html_title = "densefeat"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_favicon = "static/icon.svg"
html_css_files = ["site.css"]
