"""How Sphinx makes the documentation site of this folder: `make docs`, into build/site."""

from sphinx.application import Sphinx

from lipdeploy import __version__

project = "lipdeploy"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# index.rst takes README.md in, so that the repository's page of this folder is the site's first.
exclude_patterns = ["README.md"]
# Options begin with two dashes, not with one long one.
smartquotes = False
highlight_language = "none"
myst_heading_anchors = 3

# Docstrings are Google style, with `names` in single backticks.
default_role = "literal"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# A list, like parameters; types are in the signature.
napoleon_custom_sections = [("Attributes", "params_style")]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"lipdeploy {release}"
html_favicon = "favicon.svg"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def escape(*event: object) -> None:
    """Norms are written ||x||, and patterns of files folder/*: neither is markup."""
    *_, lines = event
    lines[:] = [line.replace("|", r"\|").replace("/*", r"/\*") for line in lines]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", escape)
