"""Sphinx configuration. API pages follow from the public names of each room (its ``__init__.pyi``)."""

from __future__ import annotations

from histoweave import __version__

project = "histoweave"
author = "The histoweave developers"
project_copyright = f"2026, {author}"
release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]
templates_path = ["_templates"]

# API pages: what `__all__` of a room offers, also where another module defines it
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_custom_sections = ["Returns"]  # as written: what is returned, then a list of what is written where

# Pages with code run when the documents are built, so that they cannot go stale
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # a cache would not see that the package has changed
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # other packages' warnings about themselves

html_theme = "sphinx_book_theme"
html_title = "histoweave"
html_static_path = ["_static"]
html_theme_options = {"show_toc_level": 2}
